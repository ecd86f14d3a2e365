"""A configuration from a few settings, for parts that need no data."""

from configs.load import load_config
from configs.schema import Config


def settings(**changes: object) -> Config:
    """Defaults but for ``changes``, whose double underscores stand for dots; shards that do not exist."""
    values = {"data.train_shards": "none.tar", "data.val_shards": "none.tar"}
    values |= {key.replace("__", "."): "null" if value is None else str(value) for key, value in changes.items()}
    return load_config([], [f"{key}={value}" for key, value in values.items()]).config
