"""What the git base says: the commit that growth and loosened limits are held against, and the files in it."""

from pytest_modelbudget.base.checkout import Checkout, checkout_of
from pytest_modelbudget.base.files import Base
from pytest_modelbudget.base.git import is_tracked
from pytest_modelbudget.base.where import DEEPEN_HINT, NO_BASE, BaseCommit, find_base

__all__ = ["DEEPEN_HINT", "NO_BASE", "Base", "BaseCommit", "Checkout", "checkout_of", "find_base", "is_tracked"]
