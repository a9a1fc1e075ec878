"""Who may talk to whom, as a cluster that enforces NetworkPolicies would decide it: these ways and no others."""

from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pytest

from tests.deploy.manifests import Object, containers, of_kind, overlay, pod_templates, selects
from tests.deploy.test_kubernetes import gpu_with

HERE = "querent"
# A pod: its namespace and its labels; a port: its number and its name.
Pod = tuple[str, dict[str, str]]
Port = tuple[int, str]


def pods(objects: tuple[Object, ...]) -> dict[str, tuple[Pod, list[Port]]]:
    return {
        workload["metadata"]["name"].removeprefix("querent-"): (
            (HERE, template["metadata"]["labels"]),
            [(p["containerPort"], p["name"]) for c in containers(template) for p in c["ports"]],
        )
        for workload, template in pod_templates(objects)
    }


def matches(peer: Object, pod: Pod) -> bool:
    namespace, labels = pod
    if "ipBlock" in peer:
        return False
    if "namespaceSelector" in peer:
        own = {"kubernetes.io/metadata.name": namespace, "querent.io/client": "true"}
        if not selects(peer["namespaceSelector"], own):
            return False
    elif namespace != HERE:
        return False
    return selects(peer.get("podSelector", {}), labels)


def allows(objects: tuple[Object, ...], pod: Pod, other: Pod, port: Port, direction: str) -> bool:
    """Whether a policy that selects `pod` lets it talk to (Egress) or hear from (Ingress) `other`."""
    key, peers = {"Ingress": ("ingress", "from"), "Egress": ("egress", "to")}[direction]
    if pod[0] != HERE:
        return True  # nothing is denied to others here
    own = [
        it["spec"]
        for it in of_kind(objects, "NetworkPolicy")
        if selects(it["spec"]["podSelector"], pod[1]) and direction in it["spec"]["policyTypes"]
    ]
    assert own, "no policy selects it: everything is allowed"
    return any(
        (peers not in way or any(matches(peer, other) for peer in way[peers]))
        and ("ports" not in way or any(it["port"] in port for it in way["ports"]))
        for spec in own
        for way in spec.get(key, ())
    )


def ways(objects: tuple[Object, ...], strangers: dict[str, Pod]) -> Iterator[tuple[str, str, int]]:
    """(who, whom, port)"""
    known = pods(objects)
    sources = {name: pod for name, (pod, _) in known.items()} | strangers
    for (who, source), (whom, (target, ports)) in product(sources.items(), known.items()):
        for port in ports:
            out, into = (
                allows(objects, source, target, port, "Egress"),
                allows(objects, target, source, port, "Ingress"),
            )
            if who != whom and out and into:
                yield who, whom, port[0]


def to_the_world(objects: tuple[Object, ...]) -> dict[str, set[int]]:
    """Pod -> ports that it may reach at any address."""
    return {
        name: {
            it["port"]
            for policy in of_kind(objects, "NetworkPolicy")
            if selects(policy["spec"]["podSelector"], labels)
            for way in policy["spec"].get("egress", ())
            if "to" not in way
            for it in way["ports"]
        }
        for name, ((_, labels), _) in pods(objects).items()
    }


STRANGERS: dict[str, Pod] = {
    "prometheus": ("monitoring", {"app.kubernetes.io/name": "prometheus"}),
    "client here": (HERE, {"querent.io/client": "true"}),
    "client elsewhere": ("shop", {"querent.io/client": "true"}),
    "somebody here": (HERE, {"app": "x"}),
    "somebody elsewhere": ("shop", {"app.kubernetes.io/component": "trainer"}),
}
FOR_ALL = {
    ("trainer", "inference", 8001),
    ("trainer", "redis", 6379),
    ("client here", "inference", 8001),
    ("client elsewhere", "inference", 8001),
    ("prometheus", "inference", 8002),
    ("prometheus", "trainer", 8003),
}
FOR_GPU = {
    ("campaigns", "inference", 8001),
    ("campaigns", "redis", 6379),
    ("prometheus", "campaigns", 8003),
}


@pytest.mark.parametrize(("name", "wanted"), [("local", FOR_ALL), ("gpu", FOR_ALL | FOR_GPU)])
def test_these_ways_are_open_and_no_others(name: str, wanted: set[tuple[str, str, int]]) -> None:
    assert set(ways(overlay(name), STRANGERS)) == wanted


def test_only_what_needs_the_world_reaches_it(tmp_path: Path) -> None:
    assert to_the_world(overlay("local")) == {"inference": set(), "trainer": set(), "redis": set()}
    database = {"trainer": {5432}, "campaigns": {5432}}
    assert to_the_world(overlay("gpu")) == {"inference": set(), "redis": set(), **database}
    with_bucket = {"inference": {443}, "trainer": {443, 5432}, "campaigns": {443, 5432}}
    assert to_the_world(gpu_with(tmp_path, "s3-registry")) == {"redis": set(), **with_bucket}


@pytest.mark.parametrize("name", ["local", "gpu"])
def test_every_pod_asks_the_clusters_dns_and_the_nodes(name: str) -> None:
    (dns,) = (it["spec"] for it in of_kind(overlay(name), "NetworkPolicy") if it["metadata"]["name"] == "dns")
    assert dns["podSelector"] == {}
    (way,) = dns["egress"]
    assert {(it["protocol"], it["port"]) for it in way["ports"]} == {("UDP", 53), ("TCP", 53)}
    assert matches(way["to"][0], ("kube-system", {"k8s-app": "kube-dns"}))
    assert way["to"][1] == {"ipBlock": {"cidr": "169.254.20.10/32"}}
