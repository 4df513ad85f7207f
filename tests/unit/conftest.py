"""Two workers share two cores: one thread each for torch."""

import torch

torch.set_num_threads(1)
