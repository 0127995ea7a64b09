"""The plain-PyTorch reference under its public name; it is :mod:`ivcl_fast.models.reference`."""

import sys

from ivcl_fast.models import reference
from ivcl_fast.models.reference import *  # noqa: F403  what type checkers and editors see

sys.modules[__name__] = reference
