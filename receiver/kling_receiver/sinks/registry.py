"""Finds the sink for an address that is neither the web's nor a command: by its scheme, among entry points."""

from importlib.metadata import EntryPoint, entry_points

from kling_receiver.sinks import Factory, Sink, describe_error, scheme_of

GROUP = "kling_callback.sinks"


def open_sink(address: str) -> Sink:
    """A sink for this address; nothing is connected yet.

    Raises ValueError, saying what to do, where no installed package serves its scheme or takes the address.
    """
    point = _found(scheme_of(address))
    factory = _load(point)
    try:
        return factory(address)
    except ValueError:
        raise
    except Exception as error:  # of somebody else's making
        raise ValueError(f"{point.name}: its sink cannot be made ({describe_error(error)}).") from error


def _found(scheme: str) -> EntryPoint:
    known = {point.name: point for point in entry_points(group=GROUP)}
    if scheme not in known:
        schemes = ", ".join(["https", "http", "command", *sorted(known)])
        raise ValueError(f"nothing delivers to {scheme or 'no scheme'}: addresses. There are: {schemes}.")
    return known[scheme]


def _load(point: EntryPoint) -> Factory:
    try:
        factory: Factory = point.load()
    except (ImportError, AttributeError) as error:
        extra = f"kling-callback[{point.name}]" if point.module.startswith("receiver.") else point.module
        raise ValueError(f"{point.name}: needs a package that is not here ({error}). Install {extra}.") from None
    except Exception as error:
        raise ValueError(f"{point.name}: its package cannot be loaded ({describe_error(error)}).") from error
    return factory
