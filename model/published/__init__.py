"""Published models: their own names and containers of weights, mapped to this project's networks."""
