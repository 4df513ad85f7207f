"""What runs inside the engine's own processes: it may import torch and vLLM, and no one else imports it."""
