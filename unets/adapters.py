"""Adapters in a network: what diffusers' PeftAdapterMixin gives, which loads peft, at the first use of it."""

import functools
from typing import Any

from diffusers import ModelMixin
from torch import nn


class Lent:
    """A method of diffusers' ``PeftAdapterMixin``, by the same name; its module is loaded when it is first called."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, network: Any, owner: type | None = None) -> Any:
        from diffusers.loaders.peft import PeftAdapterMixin

        return getattr(PeftAdapterMixin, self.name).__get__(network, owner)


class Adaptable:
    """The part of a network that holds adapters (LoRA, DoRA, ...): methods and arguments of diffusers' networks.

    Several at once, by name; each acts at a weight (``set_adapters``) until it is deleted or its product is added to
    the weights (``fuse_lora``).
    """

    add_adapter = Lent()
    load_lora_adapter = Lent()
    save_lora_adapter = Lent()
    set_adapter = Lent()
    set_adapters = Lent()
    active_adapters = Lent()
    enable_adapters = Lent()
    disable_adapters = Lent()
    enable_lora = Lent()
    disable_lora = Lent()
    fuse_lora = Lent()
    unfuse_lora = Lent()
    unload_lora = Lent()
    delete_adapters = Lent()
    enable_lora_hotswap = Lent()
    # what those keep and call
    _hf_peft_config_loaded: bool | None = False
    _prepare_lora_hotswap_kwargs: dict[str, Any] | None = None
    _optionally_disable_offloading = Lent()
    _fuse_lora_apply = Lent()
    _unfuse_lora_apply = Lent()

    @functools.wraps(ModelMixin.save_pretrained, assigned=())  # pipelines look which arguments it takes
    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """As diffusers', for a network without adapters: with one its layers have names that nothing would load.

        Raises:
            ValueError: it holds one.
        """
        if holds_adapter(self):
            raise ValueError(
                "this network holds an adapter: call unload_lora() before saving, after fuse_lora() to keep what it "
                "does; save_lora_adapter() saves the adapter alone"
            )
        super().save_pretrained(*args, **kwargs)  # type: ignore[misc]


def holds_adapter(network: Any) -> bool:
    """Whether any layer of a network is wrapped by an adapter's, even one whose adapters have been deleted."""
    return isinstance(network, nn.Module) and any(hasattr(module, "base_layer") for module in network.modules())
