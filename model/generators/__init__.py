"""Networks that predict tokens, and how one draws from them."""
