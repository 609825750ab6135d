"""`python -m segbench.kernels [COMPILER]` compiles the kernels of the package that it is called from."""

import sys

from segbench.kernels.build import LIBRARY, BuildError, build

if __name__ == "__main__":
    if len(sys.argv) > 2:
        raise SystemExit("python -m segbench.kernels [COMPILER]")
    try:
        print(f"{LIBRARY} made by {build(compiler=sys.argv[1] if len(sys.argv) > 1 else None)}")
    except BuildError as error:
        raise SystemExit(str(error)) from error
