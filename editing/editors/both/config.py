"""The settings of both methods at once: each one's own, and which facts belong to which."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Annotated, Any, Literal, get_args

from editing.editors.coachhook import CoachHookConfig
from editing.editors.recipe import RecipeConfig
from editing.errors import ConfigError
from editing.facts import FactChange, fold

Method = Literal["coachhook", "recipe"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BothConfig:
    """Settings of the two editors, and the rule by which a fact belongs to exactly one; it goes by the relation, so
    that two facts with one key always meet.

    Raises `ConfigError` at construction for a method that does not exist or a relation that is named twice.
    """

    coachhook: Annotated[CoachHookConfig, "settings of CoachHooK"]
    recipe: Annotated[RecipeConfig, "settings of RECIPE"]
    routes: Annotated[Mapping[str, Method], "relation to the method that its facts belong to"] = field(
        default_factory=dict
    )
    default: Annotated[Method, "the method of all other relations"] = "recipe"

    def __post_init__(self) -> None:
        routes: dict[str, Method] = {}
        for relation, method in self.routes.items():
            if fold(relation) in routes:
                raise ConfigError(f"routes name the relation {fold(relation)!r} twice; keep one of them")
            routes[fold(relation)] = method
        object.__setattr__(self, "routes", routes)
        for name, method in (("default", self.default), *((f"route of {name!r}", m) for name, m in routes.items())):
            if method not in get_args(Method):
                raise ConfigError(f"{name} {method!r} is no method; use one of {', '.join(get_args(Method))}")

    def method_of(self, fact: FactChange) -> Method:
        """The method that this fact belongs to."""
        return self.routes.get(fact.key.relation, self.default)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; `from_dict` is the inverse."""
        return {
            "coachhook": self.coachhook.to_dict(),
            "recipe": self.recipe.to_dict(),
            "routes": dict(self.routes),
            "default": self.default,
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> BothConfig:
        """The config with these settings. Raises `ConfigError` for a setting that does not exist or is missing."""
        known = [item.name for item in fields(cls)]
        if unknown := sorted(set(content) - set(known)):
            raise ConfigError(
                f"both methods together have no setting {', '.join(unknown)}; they have {', '.join(known)}"
            )
        if missing := [name for name in get_args(Method) if name not in content]:
            raise ConfigError(f"the settings of {' and '.join(missing)} are missing; give a table for each method")
        return cls(
            **{
                **content,
                "coachhook": CoachHookConfig.from_dict(content["coachhook"]),
                "recipe": RecipeConfig.from_dict(content["recipe"]),
            }
        )

    def to_state(self) -> dict[str, Any]:
        """What a state is written with; see the `to_state` of each. `of_state` is the inverse."""
        return {**self.to_dict(), "coachhook": self.coachhook.to_state(), "recipe": self.recipe.to_state()}

    @classmethod
    def of_state(cls, content: Mapping[str, Any]) -> BothConfig:
        """The config that a state was written with. Raises `ConfigError` as `from_dict` does."""
        return replace(cls.from_dict(content), recipe=RecipeConfig.of_state(content["recipe"]))
