"""Looking at data sets: verify, inspect, audit, and what interrupted runs left behind."""
