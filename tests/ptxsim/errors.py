"""What the simulator raises."""


class SimError(Exception):
    """The kernel did something that is an error, or undefined, on a real device."""


class LaunchError(SimError):
    """The launch itself is refused: block too large, too much shared memory, a bad cluster."""


class UnsupportedError(SimError):
    """The kernel uses a part of PTX that the simulator does not know."""
