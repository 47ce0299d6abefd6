"""Tag graphs: the published one against its messages one by one, tokens by what they promise."""

import pytest
import torch

from fastht.taxonomy import load_taxonomy
from fastht.taxonomy.graph import TagGraph
from fastht.taxonomy.published_graph import GraphEncoder

DIM, HIDDEN = 16, 8
TAXONOMY = load_taxonomy()
IDS = {tag: number for number, tag in enumerate(TAXONOMY.tags)}
CYST, MASS = IDS["Diagnosis", "cyst"], IDS["Diagnosis", "mass"]
ROUND, OVAL = IDS["Shape", "round"], IDS["Shape", "oval"]
LIVER, SHADOW = IDS["Organ_level", "Liver"], IDS["PosteriorAcoustics", "shadowing"]
RECORDS = {
    "one diagnosis": [CYST, ROUND, LIVER],
    "two diagnoses": [CYST, MASS, ROUND, LIVER, SHADOW],
    "no diagnosis": [ROUND, LIVER],
    "diagnosis alone": [MASS],
    "nothing": [],
    "other": [MASS, OVAL],
}


def numbers(records):
    width = max(map(len, records), default=0)
    return torch.tensor([r + [-1] * (width - len(r)) for r in records], dtype=torch.int64).view(
        len(records), width
    )


def multi_hot(records):
    has = torch.zeros(len(records), len(TAXONOMY.tags), dtype=torch.float64)
    for row, record in enumerate(records):
        has[row, record] = 1
    return has


def encoder(seed=0):
    torch.manual_seed(seed)
    made = GraphEncoder(TAXONOMY, DIM, HIDDEN).double().eval()
    for parameter in made.parameters():  # the biases start at zero
        torch.nn.init.normal_(parameter, std=0.5)
    return made


def passed_messages(made, record, edges=None):
    """The vector of one record, message by message; edges: (diagnosis, descriptor) pairs."""
    diagnoses = sorted({n for n in record if n < 5}) or [5]
    descriptors = sorted({n for n in record if n >= 5}) or [93]
    if edges is None:
        known = 5 not in diagnoses and 93 not in descriptors
        edges = [(d, a) for d in diagnoses for a in descriptors] if known else []
    h = {("d", n): made.node_norm(made.diag_emb.weight[n]) for n in diagnoses}
    h |= {("a", n): made.node_norm(made.desc_emb.weight[n - 5]) for n in descriptors}
    both_ways = {
        "described_by": [(("d", d), ("a", a)) for d, a in edges],
        "rev_described_by": [(("a", a), ("d", d)) for d, a in edges],
    }
    for layer in made.convs:
        new = {}
        for node in h:
            relation = "described_by" if node[0] == "a" else "rev_described_by"
            pairs, conv = both_ways[relation], layer.mods[relation]
            total = torch.zeros(HIDDEN, dtype=torch.float64)
            for source, target in pairs:
                if target == node:
                    sent = sum(s == source for s, _ in pairs) ** -0.5
                    total = total + sent * h[source]
            received = max(1, sum(t == node for _, t in pairs)) ** -0.5
            new[node] = torch.relu(received * (total @ conv.weight) + conv.bias)
        h = new
    pooled = sum(
        torch.stack([v for (kind, _), v in h.items() if kind == side]).mean(dim=0)
        for side in ("d", "a")
    )
    graph = made.proj(pooled)
    return graph / graph.norm()


@pytest.mark.parametrize("name", RECORDS)
def test_the_published_graph_is_its_messages(name):
    made = encoder()
    found, edges = made(multi_hot([RECORDS[name], RECORDS["two diagnoses"]]))
    expected = passed_messages(made, RECORDS[name])
    torch.testing.assert_close(found[0], expected, rtol=0, atol=1e-12)
    assert edges.tolist() == [name in ("one diagnosis", "two diagnoses", "other"), True]
    # Controls: another record, other weights and one edge twice are told from it.
    other = passed_messages(made, RECORDS["other" if name != "other" else "one diagnosis"])
    assert (found[0] - other).abs().max() > 1e-3
    assert (found[0] - passed_messages(encoder(1), RECORDS[name])).abs().max() > 1e-3


def test_an_edge_that_stands_twice_would_be_another_graph():
    made, record = encoder(), RECORDS["two diagnoses"]
    edges = [(d, a) for d in (CYST, MASS) for a in (ROUND, LIVER, SHADOW)]
    found = made(multi_hot([record]))[0][0]
    torch.testing.assert_close(passed_messages(made, record, edges), found, rtol=0, atol=1e-12)
    assert (passed_messages(made, record, [*edges, edges[0]]) - found).abs().max() > 1e-3


def test_dropout_of_equal_nodes_has_the_mean_and_the_variance_of_single_ones():
    made = encoder().train()
    x = torch.full((200_000, 1), 2.0)
    found = made._dropped(x, torch.full((200_000, 1), 4.0))
    # Of four nodes that are each 2 / 0.9 with probability 0.9: mean 2, variance 4 * 0.1 / 0.9 / 4.
    assert found.mean() == pytest.approx(2, abs=0.01)
    assert found.var() == pytest.approx(0.1 / 0.9, rel=0.05)


def published(seed=0):
    torch.manual_seed(seed)
    return TagGraph(TAXONOMY, DIM, mode="published", hidden=HIDDEN).eval()


def texts(n):
    torch.manual_seed(9)
    return torch.nn.functional.normalize(torch.randn(n, DIM), dim=1)


def test_the_published_fusion_is_attention_with_a_single_key():
    made, t = published(), texts(2)
    tags = numbers([RECORDS["one diagnosis"], RECORDS["nothing"]])
    graph, _ = made.graph_encoder(multi_hot([RECORDS["one diagnosis"], []]).float())
    fusion = made.text_graph_fusion
    query, key = fusion.text_proj(t)[:, None], fusion.graph_proj(graph)[:, None]
    attended = fusion.attention(query, key, key)[0][:, 0]
    expected = fusion.norm(t + 0.05 * torch.tanh(fusion.output_proj(attended)))
    torch.testing.assert_close(made(t, tags), expected, rtol=1e-6, atol=1e-6)
    # As published, a batch without any edge is left alone, and the text above is not.
    assert torch.equal(made(t, numbers([RECORDS["no diagnosis"], []])), t)
    assert (made(t, tags)[1] - t[1]).abs().max() > 0.1


def test_the_published_checkpoint_s_names_go_round():
    made = published()
    state = made.state_dict()
    relations = [
        f"graph_encoder.convs.{layer}.mods.{edge}.{kind}"
        for layer in (0, 1)
        for edge in ("described_by", "rev_described_by")
        for kind in ("weight", "bias")
    ]
    tables = ["diag_emb.weight", "desc_emb.weight", "node_norm.weight", "proj.bias"]
    fusion = ["alpha", "attention.in_proj_weight", "attention.out_proj.bias", "text_proj.weight"]
    wanted = [*relations, *(f"graph_encoder.{n}" for n in tables)]
    wanted += [f"text_graph_fusion.{name}" for name in fusion]
    assert {*wanted} <= state.keys()
    assert state["graph_encoder.desc_emb.weight"].shape == (89, HIDDEN)
    unused = {"graph_encoder.type_embeddings.emb_diagnosis": torch.zeros(HIDDEN)}
    other = published(1)
    foreign = {"base_clip.logit_scale": torch.zeros(())}
    assert other.load_published(state | unused | foreign) == list(unused)
    assert all(torch.equal(v, state[k]) for k, v in other.state_dict().items())
    gone = {k: v for k, v in state.items() if k != relations[0]} | {
        "text_graph_fusion.alpha": torch.zeros(2)
    }
    third = published(2)
    before = {k: v.clone() for k, v in third.state_dict().items()}
    with pytest.raises(ValueError, match=rf"{relations[0]} is missing; text_graph_fusion.alpha is"):
        third.load_published(gone)
    assert all(torch.equal(v, before[k]) for k, v in third.state_dict().items())


def test_new_tags_start_from_broader_ones():
    state = published().state_dict()
    birads = load_taxonomy("birads")
    made = TagGraph(birads, DIM, mode="published", hidden=HIDDEN)
    made.load_published(state)
    table, old = made.graph_encoder.desc_emb.weight, state["graph_encoder.desc_emb.weight"]
    assert torch.equal(table[:88], old[:88])
    assert torch.equal(table[-1], old[-1])
    ids = {tag: number for number, tag in enumerate(birads.tags)}
    spiculated = table[ids["Margins", "spiculated"] - 5]
    assert torch.equal(spiculated, old[ids["Margins", "ill-defined/indistinct"] - 5])
    parallel = table[ids["Orientation", "parallel orientation"] - 5]
    assert torch.equal(parallel, old[-1])


def tokens(gate=0.0, **options):
    torch.manual_seed(3)
    made = TagGraph(TAXONOMY, DIM, hidden=HIDDEN, **options).eval()
    made.tokens.gate.data.fill_(gate)
    return made


def test_tokens_start_as_the_identity_and_then_change_texts():
    t, tags = texts(6), numbers(list(RECORDS.values()))
    torch.testing.assert_close(tokens()(t, tags), t, rtol=0, atol=1e-7)
    changed = tokens(0.5)(t, tags)
    assert (changed - t).norm(dim=1).tolist()[4] == 0
    assert (changed - t).norm(dim=1)[[0, 1, 2, 3, 5]].min() > 1e-3
    torch.testing.assert_close(changed.norm(dim=1), torch.ones(6), rtol=0, atol=1e-6)


def test_the_gate_gets_a_gradient_at_once_and_then_everything_does():
    for gate in (0.0, 0.5):
        made = tokens(gate)
        made(texts(2), numbers([[CYST, ROUND], [MASS]]))[:, 0].sum().backward()
        assert made.tokens.gate.grad != 0
        others = [p.grad.abs().max() > 0 for n, p in made.named_parameters() if "gate" not in n]
        assert all(others) == bool(gate)


@pytest.mark.parametrize("neighbour", RECORDS)
def test_a_text_without_tags_keeps_its_bits_whatever_is_beside_it(neighbour):
    t = texts(2)
    found = tokens(0.7)(t, numbers([[], RECORDS[neighbour]]))
    assert torch.equal(found[0], t[0])
    assert torch.equal(tokens(0.7)(t, torch.empty(2, 0, dtype=torch.int64)), t)


def test_neither_order_nor_repetition_nor_padding_of_tags_matters():
    made, t = tokens(0.7), texts(1)
    found = made(t, torch.tensor([[CYST, ROUND, LIVER]]))
    for tags in ([LIVER, CYST, ROUND], [ROUND, CYST, LIVER]):
        assert torch.equal(made(t, torch.tensor([tags])), found)
    for tags in ([CYST, CYST, ROUND, LIVER], [-1, ROUND, -1, LIVER, CYST, -1, CYST]):
        torch.testing.assert_close(made(t, torch.tensor([tags])), found, rtol=0, atol=1e-6)
    assert (made(t, torch.tensor([[CYST, OVAL, LIVER]])) - found).abs().max() > 1e-4


def test_tag_dropout_hides_the_tags_of_its_share_of_texts_in_training_alone():
    made = tokens(0.7, tag_dropout=0.3)
    t = texts(1).repeat(2000, 1)
    tags = torch.tensor([[CYST, ROUND]]).repeat(2000, 1)
    hidden = (made.train()(t, tags) == t).all(dim=1)
    assert hidden.float().mean() == pytest.approx(0.3, abs=0.05)
    assert not (made.eval()(t, tags) == t).all(dim=1).any()


def test_what_cannot_be_used_is_refused():
    with pytest.raises(ValueError, match="choose tokens or published"):
        TagGraph(TAXONOMY, DIM, mode="graph")
    with pytest.raises(ValueError, match="tag_dropout is 1"):
        TagGraph(TAXONOMY, DIM, tag_dropout=1)
    with pytest.raises(ValueError, match="20 is no multiple of the 8 heads"):
        TagGraph(TAXONOMY, 20, mode="published")
    with pytest.raises(ValueError, match="a tag's number is not from 0 to 92"):
        tokens()(texts(1), torch.tensor([[93]]))
    with pytest.raises(ValueError, match="only mode='published'"):
        tokens().load_published({})
