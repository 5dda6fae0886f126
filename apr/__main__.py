"""``python -m apr``, for those who start Python programs by module: ``torchrun -m apr grpo``."""

from apr.cli import main

main()
