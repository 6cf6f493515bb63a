"""Base models: loading, identity, and where each architecture keeps the parts an editor needs."""

from editing.models.architectures import ARCHITECTURES, Architecture, architecture_of
from editing.models.loading import BaseModel, load_base_model, wrap_model

__all__ = ["ARCHITECTURES", "Architecture", "BaseModel", "architecture_of", "load_base_model", "wrap_model"]
