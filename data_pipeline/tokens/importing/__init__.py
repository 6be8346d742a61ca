"""Tokens that other programs made, as token data sets of ours."""
