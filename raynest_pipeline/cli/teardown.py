"""After a teardown in the sandbox: an emulator that holds nothing needn't run on."""

from raynest_pipeline.settings import Profile, Settings


def stop_sandbox_if_empty(settings: Settings) -> bool:
    """Stop the sandbox when its ledger of bought resources is empty; whether it was stopped."""
    if settings.profile is not Profile.SANDBOX:
        return False
    from raynest_pipeline.sandbox import control

    if control.status(settings.sandbox_dir) is None or control.ledger(settings.sandbox_dir):
        return False
    return control.stop(settings.sandbox_dir)
