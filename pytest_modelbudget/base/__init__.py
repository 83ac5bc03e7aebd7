"""What the git base says: the commit that growth and loosened limits are held against, and the files in it."""

from pytest_modelbudget.base.files import Base
from pytest_modelbudget.base.git import tracked
from pytest_modelbudget.base.where import OFF, Where, locate

__all__ = ["OFF", "Base", "Where", "locate", "tracked"]
