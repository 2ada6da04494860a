"""What the notebooks of this row run, after `benchmarks/gpu/workloads.py`."""


def prepare_more(place):
    """Kinds of work that drain slowly: 200 launches without a sync, 40 ms (deep), and kernels of 200 ms (long)."""
    _steps["deep"] = _deep(place)
    _steps["long"] = _long(place)


def _deep(place):
    if place != "cuda":
        return lambda: sum(range(200_000))
    import torch

    a = torch.randn(4096, 4096, device=place, dtype=torch.bfloat16)

    def step():
        for _ in range(200):
            torch.mm(a, a)
        torch.cuda.synchronize()

    return step


def _long(place):
    if place != "cuda":
        return lambda: sum(range(2_000_000))
    import torch

    def step():
        torch.cuda._sleep(int(0.2 * 1.7e9))  # at 1.7 GHz
        torch.cuda.synchronize()

    return step


def opened(place, period, deadline, again):
    """Return a pipeline of a conv net of about 2 ms; `again`: measured once more (one layer may have met a stranger)."""
    from gpushare_kernel.realtime import Pipeline, measure
    from gpushare_kernel.realtime.measurement import host, node_types

    model, example = _net(place)
    if again:
        whole = [one for one in node_types(host.cores(), host.gpus()) if one.cpus == host.cores()]
        measure(model, example, whole, name="camera", again=True)
    return Pipeline(model, example, period=period, deadline=deadline, name="camera")


def _net(place):
    if place != "cuda":
        import numpy

        return [_spin, _spin], numpy.zeros(16, numpy.float32)
    import torch

    torch.manual_seed(0)
    layers = [torch.nn.Conv2d(3, 128, 3, padding=1), torch.nn.ReLU()]
    for _ in range(10):
        layers += [torch.nn.Conv2d(128, 128, 3, padding=1), torch.nn.ReLU()]
    layers += [torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()]
    blocks = [torch.nn.Sequential(*layers[n : n + 8]).eval() for n in range(0, len(layers), 8)]
    return blocks, torch.zeros(4, 3, 112, 112)


def _spin(x):
    for _ in range(200):
        x = x + 1
    return x


def run_for(pipe, number):
    """Release so many jobs on the grid; return the responses of these."""
    before = len(pipe.report().responses)
    left = iter(range(number))
    example = pipe._tenant.example

    def source():
        next(left)
        return example

    for _ in pipe.every_period(source):
        pass
    return list(pipe.report().responses)[before:]
