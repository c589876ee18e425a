"""Every action of operators: those of the capabilities, and those that concern all of them."""

from __future__ import annotations

from collections.abc import Mapping

from ingest_project.core.yaml_models import nearest
from ingest_project.operations import CAPABILITIES, SystemResources
from ingest_project.platform.actions import Action, ActionRefusedError, perform

__all__ = ["ACTIONS", "action_named", "actions_by_capability", "perform"]

# What concerns no capability alone.
GENERAL: tuple[Action[SystemResources], ...] = ()


def actions_by_capability() -> Mapping[str, tuple[Action[SystemResources], ...]]:
    """Return the actions by the name of their capability, `operations` for those of no one alone."""
    every = {capability.name: capability.actions for capability in CAPABILITIES} | {"operations": GENERAL}
    return {name: actions for name, actions in every.items() if actions}


ACTIONS: Mapping[str, Action[SystemResources]] = {
    action.name: action for actions in actions_by_capability().values() for action in actions
}


def action_named(name: str) -> Action[SystemResources]:
    """Return an action.

    Raises:
        ActionRefusedError: there is none of this name; the message proposes the nearest.
    """
    if name not in ACTIONS:
        raise ActionRefusedError(f"There is no action {name[:50]!r}{nearest(name, ACTIONS) or '.'}")
    return ACTIONS[name]
