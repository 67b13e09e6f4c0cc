"""The safety record of a validator: what it has promised, durable before the promise leaves."""
