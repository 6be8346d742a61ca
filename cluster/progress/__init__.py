"""How far a stage is: training_progress.py shows it, stage_records.py writes down what took how long."""
