"""Ring 1: what we invented and compiled. Handles and calls for the modules above; not for direct use."""
