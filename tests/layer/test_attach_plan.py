"""What attach and detach decide, without a request."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perinvoke.layer.attach.configuration import Configuration, Parts, configuration_of, members, unpublished
from perinvoke.layer.attach.difference import lines
from perinvoke.layer.attach.fitness import check_fits, check_kind, environment_bytes, warnings_about
from perinvoke.layer.attach.names import parse_function, parse_layer_version
from perinvoke.layer.attach.plan import attaching, current_layer, detaching
from perinvoke.layer.attach.record import ATTACHED, Record, encode, parse
from perinvoke.layer.attach.routes import Route
from perinvoke.layer.attach.secrets import without_values
from perinvoke.layer.errors import LayerError

if TYPE_CHECKING:
    from collections.abc import Mapping

ACCOUNT = "123456789012"
WRAPPER = "/opt/perinvoke/exec"
HANDLER = "perinvoke.handler.handler"
INSTANCES = {"CapacityProviderArn": f"arn:aws:lambda:eu-west-1:{ACCOUNT}:capacity-provider:instances"}


def layer(version: int = 1, name: str = "perinvoke") -> str:
    return f"arn:aws:lambda:eu-west-1:{ACCOUNT}:layer:{name}:{version}"


def function(parts: Parts | None = None, *, instances: Mapping[str, Any] | None = INSTANCES, **members: Any) -> Configuration:
    parts = parts or Parts("app.handler", (), {})
    told = {
        "FunctionName": "orders",
        "FunctionArn": f"arn:aws:lambda:eu-west-1:{ACCOUNT}:function:orders",
        "Runtime": "python3.13",
        "Handler": parts.handler,
        "Layers": [{"Arn": arn} for arn in parts.layers],
        "MemorySize": 2048,
        "CapacityProviderConfig": {"LambdaManagedInstancesCapacityProviderConfig": instances},
    }
    if parts.environment:
        told["Environment"] = {"Variables": dict(parts.environment)}
    return configuration_of(told | members)


def attached(parts: Parts, arn: str | None = None, route: Route | None = None) -> Parts:
    return attaching(function(parts), arn or layer(), route).after


def detached(parts: Parts) -> Parts:
    return detaching(function(parts)).after


wrappers = st.sampled_from([None, "/opt/otel-instrument", WRAPPER])
routes = st.sampled_from([None, *Route])
arns = st.builds(layer, st.integers(1, 4), st.sampled_from(["perinvoke", "perinvoke-sql"]))


@st.composite
def functions(draw: st.DrawFn) -> Parts:
    """Functions as people have them; some were attached by hand, wholly or by half."""
    environment = {
        name: value
        for name, value in {
            "TABLE": draw(st.sampled_from([None, "orders"])),
            "AWS_LAMBDA_EXEC_WRAPPER": draw(wrappers),
            "PERINVOKE_EXEC_WRAPPER": draw(st.sampled_from([None, "/opt/datadog_wrapper"])),
            "PERINVOKE_HANDLER": draw(st.sampled_from([None, "app.handler", "old.handler"])),
            "PERINVOKE_PRELOAD": draw(st.sampled_from([None, "boto3", "handler"])),
            "DD_LAMBDA_HANDLER": draw(st.sampled_from([None, "app.handler", HANDLER])),
        }.items()
        if value is not None
    }
    handlers = ["app.handler", "datadog_lambda.handler.handler"]
    if "PERINVOKE_HANDLER" in environment:
        handlers.append(HANDLER)
    by_hand = draw(st.sampled_from([(), (layer(1),), (layer(2, "perinvoke-sql"),)]))
    before, after = draw(st.sampled_from([(), (layer(3, "a"),)])), draw(st.sampled_from([(), (layer(3, "b"),)]))
    return Parts(draw(st.sampled_from(handlers)), (*before, *by_hand, *after), environment)


@given(functions(), st.lists(st.tuples(arns, routes), min_size=1, max_size=4))
def test_detach_gives_back_exactly_what_was_there_however_often_it_was_attached(parts: Parts, wishes: list[Any]) -> None:
    now = parts
    for arn, route in wishes:
        now = attached(now, arn, route)
        assert layer_count(now, arn) == 1
        assert not attaching(function(now), arn, route).changes
    if ATTACHED in now.environment:
        assert detached(now) == parts
    else:
        assert now == parts  # it was attached by hand, just so


@given(functions(), arns, routes)
def test_what_others_add_meanwhile_stays(parts: Parts, arn: str, route: Route | None) -> None:
    now = attached(parts, arn, route)
    if ATTACHED not in now.environment:
        return
    now = Parts(now.handler, (layer(1, "new"), *now.layers), {**now.environment, "NEW": "1", "TABLE": "changed"})
    found = detached(now)
    assert found.layers == (layer(1, "new"), *parts.layers)
    assert found.environment == {**parts.environment, "NEW": "1", "TABLE": "changed"}


@given(functions(), arns, routes)
def test_an_update_asks_only_for_what_changes(parts: Parts, arn: str, route: Route | None) -> None:
    plan = attaching(function(parts), arn, route)
    changes = members(plan.before, plan.after)
    assert ("Handler" in changes) == (plan.before.handler != plan.after.handler)
    assert ("Layers" in changes) == (plan.before.layers != plan.after.layers)
    assert bool(changes) == plan.changes


def layer_count(parts: Parts, arn: str) -> int:
    return sum(each.rpartition(":")[0] == arn.rpartition(":")[0] for each in parts.layers)


def test_the_wrapper_route_sets_the_exec_wrapper_and_nothing_of_the_handler() -> None:
    found = attached(Parts("app.handler", (layer(1, "a"),), {"TABLE": "orders"}))
    assert found.handler == "app.handler"
    assert found.layers == (layer(1, "a"), layer())
    record = found.environment[ATTACHED]
    assert found.environment == {
        "TABLE": "orders",
        "AWS_LAMBDA_EXEC_WRAPPER": WRAPPER,
        "PERINVOKE_PRELOAD": "handler",
        ATTACHED: record,
    }
    assert json.loads(record)["layer"] == [layer(), None]


def test_the_handler_route_puts_perinvokes_handler_before_the_functions_own() -> None:
    found = attached(Parts("app.handler", (), {}), route=Route.HANDLER)
    assert found.handler == HANDLER
    assert {**found.environment, ATTACHED: ""} == {"PERINVOKE_HANDLER": "app.handler", ATTACHED: ""}


def test_another_wrapper_is_kept_and_the_route_is_then_handler() -> None:
    parts = Parts("app.handler", (), {"AWS_LAMBDA_EXEC_WRAPPER": "/opt/otel-instrument"})
    plan = attaching(function(parts), layer(), None)
    assert plan.after.handler == HANDLER
    assert plan.after.environment["AWS_LAMBDA_EXEC_WRAPPER"] == "/opt/otel-instrument"
    assert "/opt/otel-instrument already" in plan.warnings[0]
    assert "--route wrapper" in plan.warnings[0]
    chained = attached(parts, route=Route.WRAPPER)
    assert chained.environment["AWS_LAMBDA_EXEC_WRAPPER"] == WRAPPER
    assert chained.environment["PERINVOKE_EXEC_WRAPPER"] == "/opt/otel-instrument"
    # Attached again without a wish, it stays on the route that it is on.
    assert attached(chained, layer(2)).environment["PERINVOKE_EXEC_WRAPPER"] == "/opt/otel-instrument"


def test_datadogs_handler_is_what_perinvokes_calls() -> None:
    parts = Parts("datadog_lambda.handler.handler", (), {"DD_LAMBDA_HANDLER": "app.handler"})
    found = attached(parts, route=Route.HANDLER)
    assert found.handler == HANDLER
    assert found.environment["PERINVOKE_HANDLER"] == "datadog_lambda.handler.handler"
    assert found.environment["DD_LAMBDA_HANDLER"] == "app.handler"


def test_a_function_that_datadog_isolates_through_perinvoke_does_not_come_to_call_itself() -> None:
    environment = {"DD_LAMBDA_HANDLER": HANDLER, "PERINVOKE_HANDLER": "app.handler"}
    found = attached(Parts("datadog_lambda.handler.handler", (), environment), route=Route.HANDLER)
    assert found.handler == "datadog_lambda.handler.handler"
    assert found.environment["PERINVOKE_HANDLER"] == "app.handler"


def test_what_was_attached_by_hand_just_so_is_left_alone() -> None:
    environment = {"AWS_LAMBDA_EXEC_WRAPPER": WRAPPER, "PERINVOKE_PRELOAD": "handler"}
    assert not attaching(function(Parts("app.handler", (layer(),), environment)), layer(), None).changes


def test_perinvokes_handler_without_the_functions_own_is_an_error() -> None:
    with pytest.raises(LayerError, match="there is no PERINVOKE_HANDLER"):
        attached(Parts(HANDLER, (), {}), route=Route.HANDLER)


def test_another_version_is_replaced_in_its_place_and_put_back() -> None:
    parts = Parts("app.handler", (layer(1, "a"), layer(1), layer(1, "b")), {})
    now = attached(attached(parts, layer(2)), layer(3))
    assert now.layers == (layer(1, "a"), layer(3), layer(1, "b"))
    assert detached(now) == parts


def test_two_layers_of_perinvoke_are_warned_of() -> None:
    parts = Parts("app.handler", (layer(1, "perinvoke-sql"),), {})
    assert "of two, the later" in " ".join(attaching(function(parts), layer(), None).warnings)
    assert current_layer(parts) == layer(1, "perinvoke-sql").rpartition(":")[0]
    assert current_layer(Parts("app.handler", (layer(1, "other"),), {})) is None
    named = attached(Parts("app.handler", (), {}), layer(1, "ours"))
    assert current_layer(named) == layer(1, "ours").rpartition(":")[0]


# --- what was changed by hand since -----------------------------------------------------------------------------------------


def notes_of(now: Parts) -> tuple[Parts, str]:
    plan = detaching(function(now))
    return plan.after, " ".join(plan.warnings)


def changed(now: Parts, **changes: str | None) -> Parts:
    environment = {name: value for name, value in {**now.environment, **changes}.items() if value is not None}
    return Parts(now.handler, now.layers, environment)


def test_a_variable_that_was_changed_since_stays_and_is_told() -> None:
    now = changed(attached(Parts("app.handler", (), {})), PERINVOKE_PRELOAD="boto3")
    found, notes = notes_of(now)
    assert found == Parts("app.handler", (), {"PERINVOKE_PRELOAD": "boto3"})
    assert notes == "PERINVOKE_PRELOAD was changed since, and stays as it is"


def test_a_variable_that_was_taken_away_since_is_no_problem() -> None:
    now = changed(attached(Parts("app.handler", (), {})), PERINVOKE_PRELOAD=None)
    assert notes_of(now) == (Parts("app.handler", (), {}), "")


def test_a_handler_that_was_changed_since_stays() -> None:
    now = attached(Parts("app.handler", (), {}), route=Route.HANDLER)
    found, notes = notes_of(Parts("new.handler", now.layers, now.environment))
    assert found == Parts("new.handler", (), {})
    assert notes == "Handler was changed to new.handler since, and stays so"


def test_a_handler_that_was_changed_where_perinvoke_looks_for_it_becomes_the_handler() -> None:
    now = changed(attached(Parts("app.handler", (), {}), route=Route.HANDLER), PERINVOKE_HANDLER="new.handler")
    found, notes = notes_of(now)
    assert found == Parts("new.handler", (), {})
    assert notes == "PERINVOKE_HANDLER was changed to new.handler since: that is the Handler now, not app.handler"


def test_a_wrapper_that_was_changed_where_perinvoke_looks_for_it_becomes_the_wrapper() -> None:
    parts = Parts("app.handler", (), {"AWS_LAMBDA_EXEC_WRAPPER": "/opt/otel-instrument"})
    now = changed(attached(parts, route=Route.WRAPPER), PERINVOKE_EXEC_WRAPPER="/opt/otel-handler")
    found, notes = notes_of(now)
    assert found == Parts("app.handler", (), {"AWS_LAMBDA_EXEC_WRAPPER": "/opt/otel-handler"})
    assert notes == "PERINVOKE_EXEC_WRAPPER was changed to /opt/otel-handler since: that is the AWS_LAMBDA_EXEC_WRAPPER now"


def test_a_layer_version_that_was_changed_since_comes_off_and_is_told() -> None:
    now = attached(Parts("app.handler", (), {}))
    found, notes = notes_of(Parts(now.handler, (layer(7),), now.environment))
    assert found == Parts("app.handler", (), {})
    assert notes == f"{layer()} was changed to {layer(7)} since, which comes off all the same"


def test_a_layer_that_was_taken_off_since_is_not_put_back() -> None:
    now = attached(Parts("app.handler", (layer(1),), {}), layer(2))
    found, notes = notes_of(Parts(now.handler, (), now.environment))
    assert found == Parts("app.handler", (), {})
    assert notes == f"{layer(2)} was taken off since; {layer(1)}, which it took the place of, is not put back"


def test_settings_that_stay_without_the_layer_are_warned_of() -> None:
    now = attached(Parts("app.handler", (), {"PERINVOKE_HANDLER": "app.handler"}))
    _, notes = notes_of(Parts(HANDLER, now.layers, now.environment))
    assert notes == f"Handler={HANDLER} stays, which attach hasn't set: without the layer the function fails"


@pytest.mark.parametrize(
    ("parts", "left"),
    [
        (Parts("app.handler", (layer(),), {}), layer()),
        (Parts("app.handler", (), {"AWS_LAMBDA_EXEC_WRAPPER": WRAPPER}), f"AWS_LAMBDA_EXEC_WRAPPER={WRAPPER}"),
        (Parts(HANDLER, (), {}), f"Handler={HANDLER}"),
    ],
)
def test_what_was_attached_by_hand_is_not_taken_off(parts: Parts, left: str) -> None:
    with pytest.raises(LayerError, match="it was attached by hand, or by SAM") as raised:
        detached(parts)
    assert left in str(raised.value)


# --- the undo record ----------------------------------------------------------------------------------------------------------


texts = st.text(max_size=20)
records = st.builds(
    Record,
    layer=st.none() | st.tuples(texts, st.none() | texts),
    handler=st.none() | st.tuples(texts, texts),
    variables=st.dictionaries(texts, st.tuples(st.none() | texts, st.none() | texts), max_size=4),
)


@given(records)
def test_a_record_survives_being_written(record: Record) -> None:
    assert parse(encode(record)) == record


@pytest.mark.parametrize(
    "text",
    [
        *("", "x", "[]", "{}", "null", '{"v":1,"layer":[]}', '{"v":1,"layer":[null,null]}', '{"v":1,"handler":["a",null]}'),
        *('{"v":1,"env":[]}', '{"v":1,"env":{"A":["a"]}}', '{"v":1,"env":{"A":[1,2]}}', '{"v":1,"handler":7}', "[" * 100_000),
    ],
)
def test_a_record_that_somebody_has_changed_is_an_error(text: str) -> None:
    with pytest.raises(LayerError, match=f"variable {ATTACHED}, by which .* can't be read"):
        parse(text)
    with pytest.raises(LayerError, match="can't be read"):
        detached(Parts("app.handler", (), {ATTACHED: text}))


def test_a_record_of_a_newer_perinvoke_asks_for_that_one() -> None:
    with pytest.raises(LayerError, match="newer perinvoke"):
        parse('{"v":2}')


# --- names --------------------------------------------------------------------------------------------------------------------

ARN = f"arn:aws:lambda:eu-west-1:{ACCOUNT}:function:orders"


@pytest.mark.parametrize(
    ("text", "asked", "region"),
    [
        ("orders", "orders", None),
        ("orders:$LATEST", "orders", None),
        ("function:orders", "orders", None),
        (ARN, ARN, "eu-west-1"),
        (f"{ARN}:$LATEST", ARN, "eu-west-1"),
        (f"{ACCOUNT}:function:orders", f"{ACCOUNT}:function:orders", None),
        (
            f"arn:aws-us-gov:lambda:us-gov-west-1:{ACCOUNT}:function:orders",
            f"arn:aws-us-gov:lambda:us-gov-west-1:{ACCOUNT}:function:orders",
            "us-gov-west-1",
        ),
    ],
)
def test_a_function_is_named_as_aws_names_it(text: str, asked: str, region: str | None) -> None:
    found = parse_function(text)
    assert (found.name, found.asked, found.region) == ("orders", asked, region)


@pytest.mark.parametrize("qualifier", ["1", "live", "$LATEST.PUBLISHED"])
@pytest.mark.parametrize("name", ["orders", ARN, f"{ACCOUNT}:function:orders"])
def test_a_version_or_an_alias_is_refused(name: str, qualifier: str) -> None:
    with pytest.raises(LayerError, match="names a version or an alias, and those can't be changed. Give orders"):
        parse_function(f"{name}:{qualifier}")


@pytest.mark.parametrize(
    "text", ["", "a b", "arn:aws:s3:::bucket", "arn:aws:lambda:eu-west-1:12:function:orders", "a:b:c:d", "ä"]
)
def test_what_names_no_function_is_refused(text: str) -> None:
    with pytest.raises(LayerError, match="names no function"):
        parse_function(text)


@pytest.mark.parametrize("arn", ["", "perinvoke", layer().rpartition(":")[0], f"{layer()}x", ARN, f"{layer()}:0"])
def test_what_is_no_layer_version_is_refused(arn: str) -> None:
    with pytest.raises(LayerError, match="is no ARN of a layer version, such as"):
        parse_layer_version(arn, "eu-west-1")


# --- limits -------------------------------------------------------------------------------------------------------------------


def test_the_sixth_layer_is_refused_and_the_five_are_named() -> None:
    five = tuple(layer(1, f"l{number}") for number in range(5))
    with pytest.raises(LayerError, match="a function takes 5 layers, and with .* these would be 6") as raised:
        attached(Parts("app.handler", five, {}))
    assert all(arn in str(raised.value) for arn in five)
    attached(Parts("app.handler", (*five[:4], layer(1)), {}), layer(2))  # it takes the place of another


def test_variables_that_get_too_large_are_refused_by_name_and_never_by_value() -> None:
    environment = {"PASSWORD": "hush" * 900, "URL": "secret" * 60, "A1": "b"}
    with pytest.raises(LayerError, match=r"would take \d+ bytes, \d+ more than the 4096") as raised:
        attached(Parts("app.handler", (), environment))
    assert "PASSWORD (3613 bytes), URL (368 bytes), PERINVOKE_ATTACHED" in str(raised.value)
    assert "hush" not in str(raised.value)
    assert "secret" not in str(raised.value)


def test_variables_are_measured_as_lambda_does() -> None:
    assert environment_bytes({"A": 'ä"'}) == len('{"A":"ä\\""}'.encode())


@pytest.mark.parametrize(
    ("members", "told"),
    [
        ({"PackageType": "Image", "Runtime": ""}, 'is a container image.*ENTRYPOINT \\["perinvoke-exec"'),
        ({"Runtime": "nodejs22.x"}, "runs on nodejs22.x: perinvoke is for Python only"),
        ({"Runtime": "provided.al2023"}, "perinvoke is for Python only"),
        ({"Runtime": "python3.10"}, "perinvoke needs Python 3.11 or newer"),
    ],
)
def test_a_function_that_perinvoke_is_not_for_is_refused(members: dict[str, Any], told: str) -> None:
    with pytest.raises(LayerError, match=told):
        check_kind(function(**members))


def test_a_layer_for_others_is_refused() -> None:
    check_fits(function(), layer(), [], [])
    check_fits(function(), layer(), ["python3.13"], ["arm64", "x86_64"])
    with pytest.raises(LayerError, match="is for runtime python3.14, and function 'orders' has python3.13"):
        check_fits(function(), layer(), ["python3.14"], [])
    with pytest.raises(LayerError, match="is for architecture x86_64, and function 'orders' has arm64"):
        check_fits(function(Architectures=["arm64"]), layer(), ["python3.13"], ["x86_64"])


def test_what_fits_is_not_warned_of() -> None:
    assert warnings_about(function()) == []


@pytest.mark.parametrize(
    ("instances", "members", "told"),
    [
        (None, {}, "it has no capacity provider"),
        (INSTANCES, {"Runtime": "python3.12"}, "it runs on python3.12; Managed Instances take Python 3.13 or newer"),
        (
            INSTANCES | {"PerExecutionEnvironmentMaxConcurrency": 64},
            {},
            (
                "64 workers (PerExecutionEnvironmentMaxConcurrency) with boto3 take about 2624 MB (41 MB each; less with "
                "PERINVOKE_PRELOAD), and an environment has 2048 MB. Give it 3072 MB, or at most 49 workers"
            ),
        ),
    ],
)
def test_what_is_not_well_is_warned_of(instances: Any, members: dict[str, Any], told: str) -> None:
    assert " ".join(warnings_about(function(instances=instances, **members))).startswith(told)


def test_variables_that_cannot_be_read_are_not_overwritten() -> None:
    with pytest.raises(LayerError, match=r"can't be read \(AccessDeniedException: no key\).*kms:Decrypt"):
        function(Environment={"Error": {"ErrorCode": "AccessDeniedException", "Message": "no key"}})


def test_what_is_not_published_is_told_in_lambdas_words() -> None:
    assert unpublished(function(), function()) == []
    assert unpublished(function(CodeSha256="a"), function(MemorySize=4096, CodeSha256="b", Handler="x.y")) == [
        *("Code", "MemorySize", "Handler")
    ]


# --- what people see ----------------------------------------------------------------------------------------------------------


def test_a_difference_shows_no_value_that_attach_has_not_set() -> None:
    before = Parts("app.handler", (layer(1, "a"), layer(1)), {"SECRET": "hush", "OTHER": "hush"})
    after = Parts(HANDLER, (layer(1, "a"), layer(2)), {"SECRET": "hush hush", "PERINVOKE_HANDLER": "app.handler"})
    assert lines(before, after, colour=False) == [
        "  layers:",
        f"    {layer(1, 'a')}",
        f"-   {layer(1)}",
        f"+   {layer(2)}",
        "  handler:",
        "-   app.handler",
        f"+   {HANDLER}",
        "  environment:",
        "-   OTHER=…",
        "+   PERINVOKE_HANDLER=app.handler",
        "-   SECRET=…",
        "+   SECRET=…",
    ]
    assert "hush" not in repr(before)


def test_values_are_taken_out_of_what_lambda_says() -> None:
    variables = {"A": 'hush"hush', "B": "x", "C": "hush"}
    told = f"Value '{json.dumps(variables)}' at 'environment' failed"
    assert without_values(told, variables.values()) == """Value '{"A": "…", "B": "x", "C": "…"}' at 'environment' failed"""
    assert without_values("too large. String measured: {}", []) == "too large."


def test_a_difference_on_a_terminal_is_in_colour() -> None:
    found = lines(Parts("a.b", (), {}), Parts("c.d", (), {}), colour=True)
    assert found == ["  handler:", "\033[31m-   a.b\033[0m", "\033[32m+   c.d\033[0m"]
