"""Compiled calls: few graphs, no recompilation without end, the same results, one line where it fails."""

import copy
from dataclasses import dataclass

import pytest
import torch
from functorch.compile import make_boxed_func
from torch import nn
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.utils import counters

from terramind_plugin.errors import ConfigError
from terramind_plugin.model import compiled
from terramind_plugin.model.compiled import GRAPHS, REPEATS, WAIT, compile_model, find_call

pytestmark = pytest.mark.usefixtures("fresh_graphs")


def said(caplog):
    return [record.getMessage() for record in caplog.records if record.name == "terramind_plugin"]


def make_boxed(graph, inputs):
    return make_boxed_func(graph)


def graphs():
    return counters["stats"]["unique_graphs"]


def layer():
    return nn.Sequential(nn.Linear(4, 3), nn.ReLU())


@dataclass
class Answer:
    output: torch.Tensor
    others: dict


class Answering(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.factor = 1

    def forward(self, x, names=()):
        out = self.layer(x["image"]) * self.factor
        return Answer(out, dict.fromkeys(names, out + 1))


def test_a_cpu_keeps_its_model_in_graphs_mode():
    module = compile_model(layer())
    module(torch.rand(2, 4))
    assert graphs() == 0
    assert find_call(module).calls == 1


def test_the_first_shape_has_a_graph_and_the_last_batch_has_none():
    module = compile_model(layer(), "default", backend="eager")
    for _ in range(3 * WAIT):
        for rows in (8, 8, 8, 8, 3):
            module(torch.rand(rows, 4))
    assert graphs() == 1


def test_shapes_that_come_often_get_graphs_of_their_own_and_there_is_an_end():
    module = compile_model(layer(), "default", backend="eager")
    with torch.no_grad():
        for rows in range(2, 2 + 2 * GRAPHS):
            for _ in range(3 * WAIT):
                module(torch.rand(rows, 4))
    assert 1 < graphs() <= GRAPHS
    for rows in range(100, 2 * compiled.KNOWN):
        module(torch.rand(rows, 4))
    (training, _) = find_call(module)._shapes.values()
    assert len(training._seen) <= compiled.KNOWN


def test_training_and_evaluation_have_a_graph_each():
    module = compile_model(layer(), "default", backend="eager")
    for _ in range(3):
        module.train()(torch.rand(8, 4))
        with torch.no_grad():
            module.eval()(torch.rand(8, 4))
    assert graphs() == 2


def test_results_gradients_and_weights_names_are_those_without(caplog):
    module = Answering()
    plain = copy.deepcopy(module)
    x, names = {"image": torch.rand(2, 4)}, ("a", "b")
    compile_model(module, "default", backend="aot_eager")
    for _ in range(2):
        got, want = module(x, names=names), plain(x, names=names)
        assert torch.equal(got.output, want.output)
        assert list(got.others) == ["a", "b"]
        (got.output.sum() + got.others["a"].sum()).backward()
        (want.output.sum() + want.others["a"].sum()).backward()
        assert torch.equal(module.layer.weight.grad, plain.layer.weight.grad)
    assert graphs() == 1
    assert list(module.state_dict()) == list(plain.state_dict())
    assert find_call(copy.deepcopy(module)) is None
    assert find_call(compile_model(module, "off")) is None
    assert not said(caplog)


def test_weights_are_no_inputs_that_a_cuda_graph_would_copy():
    module = compile_model(layer(), "default", backend="aot_eager")
    module(torch.rand(2, 4))
    assert all(hasattr(p, "_dynamo_static_input_type") for p in module.parameters())


def test_a_module_that_changes_in_each_step_runs_without_graphs(caplog):
    module = Answering()
    compile_model(module, "default", backend="eager")
    for step in range(10):
        module.factor = step
        assert torch.equal(module({"image": torch.ones(2, 4)}).output, module.layer(torch.ones(2, 4)) * step)
    assert graphs() == 2 + REPEATS
    assert said(caplog) == [
        "Answering changes from step to step, so that its graphs do not last. It runs without them."
    ]


def test_a_compiler_that_fails_is_one_line(caplog):
    def broken(graph, inputs):
        raise RuntimeError("No working C++ compiler found\nand more")

    modules = [compile_model(layer(), "default", backend=broken) for _ in range(2)]
    x = torch.rand(2, 4)
    for module in modules:
        for _ in range(2):
            assert torch.equal(module(x), compile_model(copy.deepcopy(module), "off")(x))
    (line,) = said(caplog)
    assert line == (
        "Sequential runs without compilation: No working C++ compiler found. "
        "To turn compilation off, set its mode to off."
    )


def test_a_compiler_that_fails_later_is_one_line(caplog):
    def once(graph, inputs):
        if graphs() > 1:
            raise RuntimeError("no room left")
        return graph

    module = compile_model(Answering(), "default", backend=once)
    x = {"image": torch.ones(2, 4)}
    for factor in (1, 2, 3):
        module.factor = factor
        assert torch.allclose(module(x).output, module.layer(x["image"]) * factor)
    assert [line.partition(" To turn")[0] for line in said(caplog)] == [
        "Answering runs without compilation: no room left."
    ]


def test_a_backward_pass_that_fails_is_one_line_before_it_is_needed(caplog):
    """Where a loss is propagated back, nothing could be computed without the graph any more."""

    def fails(*_):
        raise RuntimeError("not in the pool")

    backend = aot_autograd(fw_compiler=make_boxed, bw_compiler=lambda graph, inputs: make_boxed_func(fails))
    module = compile_model(layer(), "default", backend=backend)
    plain = compile_model(copy.deepcopy(module), "off")
    x = torch.rand(2, 4)
    for _ in range(2):
        got, want = module(x), plain(x)
        got.sum().backward()
        want.sum().backward()
        assert torch.equal(got, want)
    assert torch.equal(module[0].weight.grad, plain[0].weight.grad)
    assert [line.partition(" To turn")[0] for line in said(caplog)] == [
        "Sequential runs without compilation: not in the pool."
    ]


def test_what_is_tried_leaves_nothing_behind():
    module = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Dropout(0.5))
    plain = copy.deepcopy(module)
    compile_model(module, "default", backend="aot_eager")
    results = []
    for one in (module, plain):
        torch.manual_seed(0)
        results.append([one(torch.arange(12.0).view(3, 4)) for _ in range(2)])
        assert all(parameter.grad is None for parameter in one.parameters())
    assert all(torch.equal(got, want) for got, want in zip(*results, strict=True))
    for got, want in zip(module.buffers(), plain.buffers(), strict=True):
        assert torch.equal(got, want)


@pytest.mark.parametrize(("training", "mode"), [(True, "default"), (False, "graphs")])
def test_cuda_graphs_are_not_for_recomputed_activations(training, mode):
    module = layer().train(training)
    module[0].activation_checkpointing = True
    assert find_call(compile_model(module))._mode_now() == mode
    module[0].activation_checkpointing = False
    assert find_call(module)._mode_now() == "graphs"


def test_an_error_of_the_module_stays_its_own(caplog):
    module = compile_model(layer(), "default", backend="eager")
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        module(torch.rand(2, 5))
    module(torch.rand(2, 4))
    assert graphs() == 1
    assert not said(caplog)


def test_modules_do_not_use_up_each_others_graphs():
    modules = [compile_model(layer(), "default", backend="eager") for _ in range(12)]
    for module in modules:
        module(torch.rand(2, 4))
    assert graphs() == 12


def test_nested_parts_count_their_own_graphs():
    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = compile_model(layer(), "default", backend="eager")
            self.apart = torch.compiler.disable(lambda x: self.inner(x))

        def forward(self, x):
            return self.apart(x + 1) * 2

    module = compile_model(Outer(), "default", backend="eager")
    for _ in range(3):
        module(torch.rand(2, 4))
    (shapes,) = find_call(module)._shapes.values()
    (graph,) = shapes.graphs.values()
    assert graph.repeats == 0
    assert graphs() == 3


def test_results_of_cuda_graphs_are_copied():
    x = torch.rand(2)
    answer = Answer(x, {"a": x, "list": [x, (x, 1)]})
    copied = compiled._copy(answer)
    assert copied is answer
    parts = [copied.output, copied.others["a"], copied.others["list"][0], copied.others["list"][1][0]]
    assert all(torch.equal(part, x) and part.data_ptr() != x.data_ptr() for part in parts)


def test_modes_are_checked():
    with pytest.raises(ConfigError, match=r"Unknown mode 'graph' of compilation. Choose one of graphs, default, off"):
        compile_model(layer(), "graph")
    assert compiled.check_mode(False) == "off"
