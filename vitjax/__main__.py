"""`python -m vitjax` is `vitjax`."""

import sys

from vitjax.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
