"""What the gateway promises, each promise tried many times against a gateway process: see `benchmarks.gateway_promises`."""
