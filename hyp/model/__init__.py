"""What a lab changes about its models on purpose: prices of operations, parts taken away."""
