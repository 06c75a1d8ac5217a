"""What a model demands of several fields at once: its validators, and values that it derives from others."""

import inspect
from typing import Any, Final

from pydantic import BaseModel

from mongoz.fields.class_cache import compiled

__all__ = ["asks_for_others", "has_invariants", "has_validator_of"]

_OF_PARTIAL_ROWS: Final = "_drop_unloaded"
_NONE: Final = frozenset({"BaseModel.model_post_init", "init_private_attributes"})


@compiled
def has_invariants(model: Any) -> bool:
    """Whether a model looks at several fields when it is validated, so that no field can be written on its own.

    That is: validators of the model, validators of fields that ask for the other fields, `model_post_init`.
    """
    decorators = model.__pydantic_decorators__
    if decorators.model_validators.keys() - {_OF_PARTIAL_ROWS} or decorators.root_validators:
        return True
    if model.model_post_init.__qualname__ not in _NONE:
        return True
    return any(_takes_info(found) for found in decorators.field_validators.values()) or bool(decorators.validators)


def asks_for_others(model: type[BaseModel], attribute: str) -> bool:
    """Whether a validator of a field looks at other fields, so that the value alone can't be validated."""
    decorators = model.__pydantic_decorators__
    found: list[Any] = [one for one in decorators.field_validators.values() if _takes_info(one)]
    found += decorators.validators.values()
    return any({attribute, "*"} & set(one.info.fields) for one in found)


def has_validator_of(model: type[BaseModel], attribute: str) -> bool:
    """Whether a function of the class validates a field."""
    decorators = model.__pydantic_decorators__
    found: list[Any] = [*decorators.field_validators.values(), *decorators.validators.values()]
    return any({attribute, "*"} & set(one.info.fields) for one in found)


def _takes_info(validator: Any) -> bool:
    """Whether a field's validator is given more than the value (and, around another one, that)."""
    try:
        parameters = inspect.signature(validator.func).parameters.values()
    except ValueError:  # some built-in functions have none
        return False
    needed = [one for one in parameters if one.default is one.empty and one.kind is not one.VAR_KEYWORD]
    return len(needed) > (2 if validator.info.mode == "wrap" else 1)
