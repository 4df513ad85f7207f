"""Load tests of OpenAI-compatible servers with locust, plain and draft beside each other; stands alone."""
