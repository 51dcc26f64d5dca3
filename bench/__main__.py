"""Command line: `python -m bench --help`, and `python -m bench --gpu --help` for what runs on one GPU."""

from __future__ import annotations

import sys

GPU = "--gpu"

if __name__ == "__main__":
    # Each imports what the other need not have installed: with --gpu, TerraTorch and rasterio may be missing.
    if GPU in sys.argv[1:]:
        sys.argv.remove(GPU)
        from bench.gpu.command import main
    else:
        from bench.command import main
    sys.exit(main())
