"""What the simulator raises."""


class SimError(Exception):
    """What is an error, or undefined, on a real device."""


class LaunchError(SimError):
    """Refused: block too large, too much shared memory, a bad cluster."""


class UnsupportedError(SimError):
    """A part of PTX that the simulator does not know."""
