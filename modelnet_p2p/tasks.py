"""The tasks that people mean: Hugging Face's `pipeline_tag` strings, by which a mistyped one is recognised.

No list of what is allowed in a record: any name that `check_task` lets pass is a task there, for a later
version may know more. Who publishes is asked to use one of these, or a name of his own.
"""

from __future__ import annotations

from modelnet_p2p.errors import Code, LocalError
from modelnet_p2p.names import MAX_TASK_BYTES, check_task

OWN = "x-"  # how the tasks begin that an organisation has named
LIKENESS = 0.75  # difflib's measure: one or two slips

TASKS = frozenset(
    {
        "any-to-any",
        "audio-classification",
        "audio-text-to-text",
        "audio-to-audio",
        "automatic-speech-recognition",
        "depth-estimation",
        "document-question-answering",
        "feature-extraction",
        "fill-mask",
        "graph-ml",
        "image-classification",
        "image-feature-extraction",
        "image-segmentation",
        "image-text-to-image",
        "image-text-to-text",
        "image-text-to-video",
        "image-to-3d",
        "image-to-image",
        "image-to-text",
        "image-to-video",
        "keypoint-detection",
        "mask-generation",
        "multiple-choice",
        "object-detection",
        "question-answering",
        "reinforcement-learning",
        "robotics",
        "sentence-similarity",
        "summarization",
        "table-question-answering",
        "table-to-text",
        "tabular-classification",
        "tabular-regression",
        "tabular-to-text",
        "text-classification",
        "text-generation",
        "text-ranking",
        "text-retrieval",
        "text-to-3d",
        "text-to-audio",
        "text-to-image",
        "text-to-speech",
        "text-to-video",
        "text2text-generation",
        "time-series-forecasting",
        "token-classification",
        "translation",
        "unconditional-image-generation",
        "video-classification",
        "video-text-to-text",
        "video-to-video",
        "visual-document-retrieval",
        "visual-question-answering",
        "voice-activity-detection",
        "zero-shot-classification",
        "zero-shot-image-classification",
        "zero-shot-object-detection",
    }
)


def is_known(task: str) -> bool:
    """Whether others search for it, or somebody's organisation has named it."""
    return task in TASKS or task.startswith(OWN)


def check_known(task: str) -> None:
    """Raises LocalError (bad-input) for a task that is neither."""
    check_task(task)
    if not is_known(task):
        raise LocalError(Code.BAD_INPUT, f"{task!r} is no task that others search for", hint=meant(task))


def meant(task: str) -> str:
    """What to publish in place of an unknown task."""
    from difflib import get_close_matches  # not at the top: nobody else needs it

    near = get_close_matches(task, sorted(TASKS), 1, LIKENESS)
    first = (
        f"did you mean {near[0]}?" if near else "Hugging Face's pipeline tags are, as text-classification;"
    )
    own = f"{OWN}acme/{task}"[:MAX_TASK_BYTES]
    return f"{first} A task of your own is named x-ORG/TASK, such as {own}"
