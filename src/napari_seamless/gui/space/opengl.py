"""A guard against a fault of napari that crashes the viewer when a layer is removed."""

from typing import Any

from qtpy.compat import isalive
from vispy.gloo.context import canvasses  # type: ignore[import-untyped]


def delete_in_own_context() -> None:
    """Let each viewer delete what it has drawn of a removed layer in its own OpenGL context.

    napari tells OpenGL to delete textures and programs as soon as a layer is removed (`finish`),
    in whatever context is current then: mostly the one that Qt puts the window together with. Where
    the layer was drawn and then hidden, Mesa crashes in one of the next frames.

    The canvases that are open now are changed, each once, however often this is called.
    """
    for canvas in [reference() for reference in canvasses]:
        if canvas is not None and "finish" not in vars(canvas.context):
            _guard(canvas.native, canvas.context)


def _guard(widget: Any, context: Any) -> None:
    def finish() -> None:
        if isalive(widget):  # type: ignore[no-untyped-call]
            widget.makeCurrent()
        type(context).finish(context)

    context.finish = finish
