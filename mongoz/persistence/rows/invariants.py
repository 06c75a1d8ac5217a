"""Finds models whose validators read several fields. A field of such a model can't be validated alone."""

from typing import Any, Final

from pydantic import BaseModel

from mongoz.fields.class_cache import cached_per_class
from mongoz.model.partial import PARTIAL_VALIDATOR, takes_info

__all__ = ["has_invariants", "has_validator_of", "needs_other_fields"]

_TRIVIAL_POST_INITS: Final = frozenset({"BaseModel.model_post_init", "init_private_attributes"})


@cached_per_class
def has_invariants(model: Any) -> bool:
    """Whether the validation of a model reads several fields.

    Model validators, field validators that take `info`, and `model_post_init` may read several fields.
    """
    decorators = model.__pydantic_decorators__
    if decorators.model_validators.keys() - {PARTIAL_VALIDATOR} or decorators.root_validators:
        return True
    if model.model_post_init.__qualname__ not in _TRIVIAL_POST_INITS:
        return True
    return any(takes_info(found) for found in decorators.field_validators.values()) or bool(decorators.validators)


def needs_other_fields(model: type[BaseModel], attribute: str) -> bool:
    """Whether a validator of a field reads other fields, so that the value alone can't be validated."""
    decorators = model.__pydantic_decorators__
    found: list[Any] = [one for one in decorators.field_validators.values() if takes_info(one)]
    found += decorators.validators.values()
    return any({attribute, "*"} & set(one.info.fields) for one in found)


def has_validator_of(model: type[BaseModel], attribute: str) -> bool:
    """Whether a method of the class validates a field."""
    decorators = model.__pydantic_decorators__
    found: list[Any] = [*decorators.field_validators.values(), *decorators.validators.values()]
    return any({attribute, "*"} & set(one.info.fields) for one in found)
