"""What the loss modules have in common."""

from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from ._buffers import Float32Buffers
from ._call.checks import check_class_vector, check_prior
from ._call.problem import CommonOptions
from ._call.schema import keywords_of
from ._call.signatures import LinearArguments, ModuleArguments


class LossModule(Float32Buffers):
    """Options, class weights and a prior, all of them attributes."""

    Declaration: ClassVar[type[CommonOptions]]
    options: Any  # of that class
    weight: Tensor | None
    prior: Tensor | None

    def __init__(self, options: CommonOptions) -> None:
        super().__init__()
        self.options = options
        self.register_buffer("weight", None)
        self.register_buffer("prior", None)

    def __init_subclass__(cls) -> None:
        for name in keywords_of(cls.Declaration):
            setattr(cls, name, _option(name))

    def __setattr__(self, name: str, value: Any) -> None:
        """Options, weight and prior may be set between calls; they are checked as at first."""
        if name in keywords_of(self.Declaration):
            options = replace(self.options, **{name: value})
            check_prior(self.prior, options)
            name, value = "options", options
        elif name in ("weight", "prior"):
            value = self._checked(name, value)
        super().__setattr__(name, value)

    def _load_from_state_dict(self, *arguments: Any) -> None:
        super()._load_from_state_dict(*arguments)
        try:
            check_prior(self.prior, self.options)
        except ValueError as error:
            arguments[-1].append(str(error))  # which load_state_dict raises with all others

    def _checked(self, name: str, vector: Tensor | None) -> Tensor | None:
        if vector is not None:
            check_class_vector(name, vector, self.options.num_classes)
        if name == "prior":
            check_prior(vector, self.options)
        return vector

    def extra_repr(self) -> str:
        """The options that are not at their defaults."""
        declared = fields(self.Declaration)
        changed = (f for f in declared if getattr(self.options, f.name) != f.default)
        shown = [f"{f.name}={getattr(self.options, f.name)!r}" for f in changed]
        for name, vector in (("weight", self.weight), ("prior", self.prior)):
            if vector is not None:
                shown.append(f"{name}=({vector.numel()},)")
        return ", ".join(shown)


if TYPE_CHECKING:  # the attributes have the types of the declarations

    class OfLogits(LossModule, ModuleArguments): ...

    class OfHidden(LossModule, LinearArguments): ...
else:
    OfLogits = OfHidden = LossModule


def _option(name: str) -> property:
    return property(lambda module: getattr(module.options, name))
