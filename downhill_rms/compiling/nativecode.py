"""Native code of what is called, and none of what is only a part of it.

Numba links the functions that a function calls into it, as LLVM's intermediate code, and compiles
the whole to native code. It compiles each of them by itself too, in case that somebody calls it,
and for most of them nobody can.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from downhill_rms.compiling.internals import numba_internals


@cache
def compiler() -> Any:
    """A pipeline for `numba.njit` that makes native code of the function itself."""
    numba = numba_internals()

    class WholeFunction(numba.Compiler):  # type: ignore[misc, name-defined]
        def compile_extra(self, func: Any) -> Any:
            with on_demand(self.state.targetctx.codegen()):
                return super().compile_extra(func)

    return WholeFunction


@contextmanager
def on_demand(codegen: Any) -> Iterator[None]:
    """Have Numba make native code of the functions that it compiles here when it is asked for.

    Numba holds its lock while it compiles, so that no other thread does here.
    """
    before = dict(vars(codegen))
    set_environment = codegen.set_env

    def set_if_native(name: str, environment: Any) -> None:
        if codegen._engine.is_symbol_defined(name):
            set_environment(name, environment)
        else:
            _environments[name] = environment

    codegen._library_class, codegen.set_env = _library(), set_if_native
    try:
        yield
    finally:
        for name in ("_library_class", "set_env"):
            if name in before:
                setattr(codegen, name, before[name])
            else:
                delattr(codegen, name)
    for name in [name for name in _environments if codegen._engine.is_symbol_defined(name)]:
        set_environment(name, _environments.pop(name))


# What functions without native code want to find there: Python objects, by the name of a pointer.
_environments: dict[str, Any] = {}


@cache
def _library() -> Any:
    numba = numba_internals()

    class OnDemand(numba.JITCodeLibrary):  # type: ignore[misc, name-defined]
        """A function and all that it calls, compiled to native code when that is asked for."""

        _is_native = False

        def _finalize_final_module(self) -> None:
            self._finalize_dynamic_globals()
            self._verify_declare_only_symbols()
            self._finalized = True
            # A function that calls itself does so through a pointer to its native code.
            prefix = numba.RuntimeLinker.PREFIX
            if any(v.name.startswith(prefix) for v in self._final_module.global_variables):
                self._make_native()

        def _optimize_final_module(self) -> None:
            # What is a part of something larger is optimised there, with what is around it. Here
            # it only stops counting references where nobody else has any.
            if self._is_native:
                super()._optimize_final_module()
            else:
                options = {"opt": 0, "loop_vectorize": False, "slp_vectorize": False}
                passes, builder = self._codegen._module_pass_manager(cost="cheap", **options)
                passes.run(self._final_module, builder)

        def _make_native(self) -> None:
            if not self._is_native:
                self._is_native = True
                self._optimize_final_module()
                self._dynamic_globals.clear()
                super()._finalize_final_module()

        def get_pointer_to_function(self, name: str) -> int:
            self._ensure_finalized()
            defined = {f.name for f in self._final_module.functions if not f.is_declaration}
            if name in defined:
                self._make_native()
            return super().get_pointer_to_function(name)  # type: ignore[no-any-return]

        def serialize_using_object_code(self) -> Any:
            self._ensure_finalized()
            self._make_native()
            return super().serialize_using_object_code()

    return OnDemand
