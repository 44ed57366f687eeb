"""Open the sink of a hook's address by its scheme, from the entry points of installed packages."""

from importlib.metadata import EntryPoint, entry_points

from kling_receiver.sinks import Factory, Sink, describe_error, scheme_of

GROUP = "kling_callback.sinks"


def open_sink(address: str) -> Sink:
    """Open a sink for this address, without connecting yet.

    Raises ValueError, with what to do, if no installed package serves the scheme or the address is invalid.
    """
    point = _entry_point(scheme_of(address))
    factory = _load(point)
    try:
        return factory(address)
    except ValueError:
        raise
    except Exception as error:  # a plugin's bug
        raise ValueError(f"{point.name}: the sink cannot be opened ({describe_error(error)}).") from error


def _entry_point(scheme: str) -> EntryPoint:
    by_scheme = {point.name: point for point in entry_points(group=GROUP)}
    if scheme not in by_scheme:
        schemes = ", ".join(["https", "http", "command", *sorted(by_scheme)])
        raise ValueError(f"no sink delivers to {scheme or 'no scheme'}: addresses. Use one of: {schemes}.")
    return by_scheme[scheme]


def _load(point: EntryPoint) -> Factory:
    try:
        factory: Factory = point.load()
    except (ImportError, AttributeError) as error:
        ours = point.module.startswith("kling_receiver.")
        remedy = f"Run: pip install '.[{point.name}]'" if ours else f"Install {point.module}."
        raise ValueError(f"{point.name}: a package is missing ({error}). {remedy}") from None
    except Exception as error:  # a plugin's bug
        raise ValueError(f"{point.name}: the sink's package cannot be loaded ({describe_error(error)}).") from error
    return factory
