"""Small changes of ONNX graphs: values renamed, nodes that nothing needs taken out, names that are free."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import onnx


def subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The graphs that a node holds, such as the branches of an If."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def nodes_of(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """All nodes of a graph and of the graphs inside it."""
    for node in graph.node:
        yield node
        for inner in subgraphs(node):
            yield from nodes_of(inner)


def used_names(graph: onnx.GraphProto) -> set[str]:
    """The names of all values of a graph and of the graphs inside it."""
    named = [*graph.input, *graph.output, *graph.value_info, *graph.initializer]
    names = {value.name for value in named} | {value.values.name for value in graph.sparse_initializer}
    for node in graph.node:
        names |= {*node.input, *node.output}
        for inner in subgraphs(node):
            names |= used_names(inner)
    return names


def free_name(wanted: str, used: Collection[str]) -> str:
    """`wanted`, or it with a number after it where that is used already."""
    name, number = wanted, 1
    while name in used:
        name, number = f"{wanted}_{number}", number + 1
    return name


def rename(graph: onnx.GraphProto, old: str, new: str) -> None:
    """Give a value another name, wherever a graph or a graph inside it uses it. `new` must be free."""
    for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        if value.name == old:
            value.name = new
    for sparse in graph.sparse_initializer:
        if sparse.values.name == old:
            sparse.values.name = new
    for node in graph.node:
        for names in (node.input, node.output):
            for at, name in enumerate(names):
                if name == old:
                    names[at] = new
        for inner in subgraphs(node):
            rename(inner, old, new)


def keep_what_gives(graph: onnx.GraphProto, outputs: Collection[str]) -> None:
    """Take out the outputs that are not among `outputs`, and all nodes and constants that only those needed."""
    kept_outputs = [value for value in graph.output if value.name in outputs]
    del graph.output[:]
    graph.output.extend(kept_outputs)
    needed, kept = set(outputs), list[onnx.NodeProto]()
    for node in reversed(graph.node):  # nodes come after those whose outputs they take
        if needed.intersection(node.output):
            kept.append(node)
            needed.update(node.input)
            for inner in subgraphs(node):
                needed |= used_names(inner)
    del graph.node[:]
    graph.node.extend(reversed(kept))
    constants = [value for value in graph.initializer if value.name in needed]
    del graph.initializer[:]
    graph.initializer.extend(constants)
    sparse = [value for value in graph.sparse_initializer if value.values.name in needed]
    del graph.sparse_initializer[:]
    graph.sparse_initializer.extend(sparse)
    del graph.value_info[:]
