"""PyTorch: boundaries by its global hooks, memory by its caching allocator, first use by `_lazy_init`.

An optimizer's step ends a training iteration. Where none is seen (inference), the end of a root module's
forward pass is a boundary: a module that no other module's forward pass called. Which one that is, is read
off the stack: one hook and a look at the caller, where counting depth would cost every module call two.
A process that compiles a model has no such hook from then on.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from collections.abc import Callable
from importlib import import_module
from types import CodeType, FrameType, ModuleType
from typing import TYPE_CHECKING, Any

from gpushare_kernel.client.warm.exports import Exports
from gpushare_kernel.wire import framework_texts

if TYPE_CHECKING:
    from gpushare_kernel.client.gpu import Gpu

QUIET = 8
"""Forward passes after an optimizer's step that are no boundaries: they are part of an iteration (a teacher,
micro-batches), and an evaluation is longer."""
_HOOK_TO_CALLER = 4
"""Frames from our hook to whoever called the module: inner, _call_impl, _wrapped_call_impl, the caller."""
_NO_BACKWARD = -1
"""What torch says of a thread that is in no backward pass."""
_REAL_NUMBERS = ("GPUSHARE_MEM_INFO", "real")


def meet(module: ModuleType, gpu: Gpu) -> Torch:
    """Hook torch and return its adapter."""
    adapter = Torch(module, gpu)
    adapter.hook()
    return adapter


class Torch:
    """The torch of this process."""

    name = "torch"
    meets = True
    fixed = False
    settles = True

    def __init__(self, torch: Any, gpu: Gpu) -> None:
        self._torch = torch
        self._gpu = gpu
        self._undo: list[Callable[[], object]] = []
        self._ours: dict[int, float] = {}
        self._theirs: dict[int, float] = {}
        self.exports = Exports(torch)

    # --- Hooks -------------------------------------------------------------------------------------------

    def hook(self) -> None:
        """Register boundaries and wrap the first use. A part that this version lacks is said, once."""
        for part, what in (
            (self._hook_steps, "its steps are not seen"),
            (self._hook_first_use, "its first use of the GPU is not seen"),
            (self._hook_mem_info, "mem_get_info reports the whole GPU"),
            (self._hook_exports, "its memory is set aside by the driver only"),
        ):
            try:
                part()
            except (AttributeError, ImportError) as problem:
                version = str(getattr(self._torch, "__version__", "?"))
                self._gpu.say_once(
                    framework_texts.adapter_text(self.name, version, f"{what} ({problem})")
                )

    def remove(self) -> None:
        """Take everything back."""
        while self._undo:
            self._undo.pop()()

    def _hook_steps(self) -> None:
        torch = self._torch
        # torch.compile traces our hooks too: to it this reads True, and the rest of a hook is not there.
        compiling = torch.compiler.is_dynamo_compiling
        met, quiet = self._gpu.met, [0]
        # Private: where a version lacks it, a block that is run again in a backward pass counts as a forward pass.
        backward = getattr(torch._C, "_current_graph_task_id", lambda: _NO_BACKWARD)

        def stepped(_optimizer: object, _args: object, _kwargs: object) -> None:
            if compiling():
                return
            quiet[0] = QUIET
            met()

        def root_ran() -> None:
            if backward() != _NO_BACKWARD:
                return  # a checkpointed block, run again: a part of its iteration
            if quiet[0]:
                quiet[0] -= 1
            elif torch.is_grad_enabled():
                # What a backward pass needs is still there: an iteration, but no place to empty memory.
                self._gpu.boundary()
            else:
                met()

        optimizers = import_module("torch.optim.optimizer")  # torch.optim hides it
        self._undo.append(optimizers.register_optimizer_step_post_hook(stepped).remove)
        modules = torch.nn.modules.module
        hook = _root_hook(modules.Module, compiling, root_ran)
        handle = modules.register_module_forward_hook(hook)
        self._undo.append(handle.remove)
        self._leave_compiled_models_alone(modules.Module, handle.remove)

    def _leave_compiled_models_alone(self, module: type, remove: Callable[[], None]) -> None:
        """Once a model is compiled there is no hook on modules: torch would warn of it, and trace every call through it."""
        original = self._torch.compile

        @functools.wraps(original)
        def compile(model: Any = None, **options: Any) -> Any:  # noqa: A001 - torch's name
            __tracebackhide__ = True
            if isinstance(model, module) or isinstance(getattr(model, "__self__", None), module):
                remove()
            return original(model, **options)

        self._replace(self._torch, "compile", compile)

    def _hook_first_use(self) -> None:
        cuda = self._torch.cuda
        original, gpu = cuda._lazy_init, self._gpu
        used = [bool(cuda.is_initialized())]

        @functools.wraps(original)
        def lazy_init() -> None:
            __tracebackhide__ = True  # an error of CUDA's start is not about us
            if used[0]:
                return original()  # type: ignore[no-any-return]
            gpu.first_use()
            original()
            if (
                cuda.is_initialized() and not used[0]
            ):  # not while it is being initialised: it calls itself
                used[0] = True
                gpu.first_used()
            return None

        for place in (cuda, getattr(cuda, "memory", None), getattr(cuda, "random", None)):
            if place is not None and getattr(place, "_lazy_init", None) is original:
                self._replace(place, "_lazy_init", lazy_init)

    def _hook_mem_info(self) -> None:
        if os.environ.get(_REAL_NUMBERS[0]) == _REAL_NUMBERS[1]:
            return
        cuda = self._torch.cuda
        original, gpu = cuda.mem_get_info, self._gpu

        @functools.wraps(original)  # it is pickled by its name
        def mem_get_info(device: Any = None) -> tuple[int, int]:
            free, total = original(device)
            limit = gpu.limit
            if limit is None:
                return free, total
            # Total less free is what this notebook holds, its context included: libraries compute with both.
            room = max(0, limit - gpu.memory.now())
            return min(free, room), min(total, limit + gpu.reserve)

        for place in (cuda, getattr(cuda, "memory", None)):
            if place is not None and getattr(place, "mem_get_info", None) is original:
                self._replace(place, "mem_get_info", mem_get_info)

    def _hook_exports(self) -> None:
        if self._gpu.warm:  # else nobody ever moves a tensor, and nothing is to be slower for it
            self._undo.append(self.exports.remove)
            self.exports.hook()

    def _replace(self, place: Any, name: str, new: object) -> None:
        old = getattr(place, name)
        setattr(place, name, new)

        def put_back() -> None:
            if getattr(place, name) is new:
                setattr(place, name, old)

        self._undo.append(put_back)

    # --- Memory ------------------------------------------------------------------------------------------

    def up(self) -> bool:
        """Say whether torch has a context."""
        return bool(self._torch.cuda.is_initialized())

    def held(self) -> int:
        """Return the bytes its caching allocator reserved."""
        return sum(self._torch.cuda.memory_reserved(n) for n in self._devices())

    def used(self) -> int:
        """Return the bytes of tensors, and of what torch itself allocated."""
        return sum(self._torch.cuda.memory_allocated(n) for n in self._devices())

    def start_peak(self) -> None:
        """Forget the peak so far."""
        for n in self._devices():
            self._torch.cuda.reset_peak_memory_stats(n)

    def peak(self) -> int:
        """Return the most bytes reserved since `start_peak`."""
        return sum(self._torch.cuda.max_memory_reserved(n) for n in self._devices())

    def most_used(self) -> int:
        """Return the most bytes allocated since its peak was begun anew, and begin it anew."""
        most: int = sum(self._torch.cuda.max_memory_allocated(n) for n in self._devices())
        self.start_peak()
        return most

    def settle(self) -> None:
        """Wait for the work that was launched."""
        for n in self._devices():
            self._torch.cuda.synchronize(n)

    def capturing(self) -> bool:
        """Say whether the current stream is being captured."""
        return bool(self._torch.cuda.is_current_stream_capturing())

    def trim(self) -> None:
        """Give back whole segments that nobody uses."""
        self._torch.cuda.empty_cache()

    def cap(self, limit: int | None) -> None:
        """Set the fraction its allocator may reserve. One that the user has set is kept to, too, and stays when ours goes."""
        cuda = self._torch.cuda
        for n in self._devices():
            whole = cuda.get_device_properties(n).total_memory
            found = self._fraction(n)
            if found != self._ours.get(n):
                self._theirs[n] = found
            theirs = self._theirs[n]
            fraction = theirs if limit is None else min(theirs, limit / whole)
            cuda.set_per_process_memory_fraction(fraction, n)
            self._ours[n] = self._fraction(n)  # as torch says it: it keeps whole bytes

    def _fraction(self, device: int) -> float:
        """Return the fraction that is set; all of it where this version, or an allocator, does not say."""
        ask = getattr(self._torch.cuda, "get_per_process_memory_fraction", None)
        with contextlib.suppress(NotImplementedError, RuntimeError):
            return 1.0 if ask is None else float(ask(device))
        return 1.0

    def limit(self) -> int | None:
        """None: it can be changed."""
        return None

    def _devices(self) -> range:
        return range(self._torch.cuda.device_count())


def _root_hook(
    module: Any, compiling: Callable[[], bool], ran: Callable[[], None]
) -> Callable[[object, object, object], None]:
    """Return a forward hook that calls `ran` for root modules, and returns fast for all others."""
    wrapped: CodeType = module.__call__.__code__
    call: CodeType = module._call_impl.__code__
    inner = next((c for c in call.co_consts if isinstance(c, CodeType)), call)
    frame = sys._getframe

    def forwarded(_module: object, _inputs: object, _output: object) -> None:
        if compiling():
            return
        try:
            caller = frame(_HOOK_TO_CALLER)
        except ValueError:  # called from C
            caller = frame(0)
        back = caller.f_back
        # The common case: a `forward` that torch itself called.
        if back is not None and caller.f_code.co_name == "forward":
            code = back.f_code
            if code is inner or code is call:
                return
        if not _nested(frame(0), wrapped):
            ran()

    return forwarded


def _nested(frame: FrameType, wrapped: CodeType) -> bool:
    """Say whether two module calls are on the stack: the one that ends, and one around it."""
    calls = 0
    at: FrameType | None = frame
    while at is not None:
        if at.f_code is wrapped:
            calls += 1
            if calls > 1:
                return True
        at = at.f_back
    return False
