"""A plan as a person reads it."""

from collections import Counter

from launch.chips import GIB


def text(plan: dict) -> str:
    """Lines and small tables of what `launch.plan.plan` found."""
    recipe = plan["recipe"]
    head = f"{recipe['name']} on {plan['topology']} ({plan['devices']} x {plan['chip']}): micro-batch "
    head += f"{plan['micro_batch']}, {plan['rounds']} a step on each device"
    said = [head, "", *_memory(plan)]
    if plan["collectives"]:
        said += ["", *_collectives(plan["collectives"])]
    if plan["gradient_overlap"]:
        said.append(f"gradients over devices: {plan['gradient_overlap']}")
    said += ["", *_time(plan["time"])]
    return "\n".join(said)


def _memory(plan: dict) -> list[str]:
    if not plan["memory"] and plan["fits"]:
        return ["memory of each device: not known without compiling"]
    limit = "unknown" if plan["limit"] is None else _gib(plan["limit"])
    verdict = "fits" if plan["fits"] else "DOES NOT FIT"
    if plan["limit"] is None:
        verdict = "compiles; whether it fits is yours to say"
    said = [f"memory of each device: {verdict}"]
    said += [f"  {name:<12}{_gib(size):>12}" for name, size in plan["memory"].items()]
    if plan["needs"] is not None:
        said.append(f"  {'needs':<12}{_gib(plan['needs']):>12}")
    said.append(f"  {'limit':<12}{limit:>12}")
    if plan["refusal"]:
        said.append(f"  the compiler: {plan['refusal']}")
    if plan["searched"]:
        most = plan["largest_micro_batch"]
        tried = ", ".join(f"{each['micro_batch']} {_tried(each)}" for each in plan["tried"])
        found = "no micro-batch fits" if most is None else f"the largest micro-batch that fits is {most}"
        said.append(f"  {found} (tried: {tried})")
    return said


def _tried(each: dict) -> str:
    needs = "" if each["needs"] is None else f" needs {_gib(each['needs'])}"
    return ("fits," if each["fits"] else "doesn't fit,") + needs


def _collectives(found: list[dict]) -> list[str]:
    """Equal ones in one line."""
    keys = ("kind", "bytes", "devices", "waits", "during")
    counted = Counter(tuple(each[key] for key in keys) for each in found for _ in range(each["times"]))
    said = ["between devices, in a step:"]
    for (kind, size, devices, waits, during), count in counted.items():
        how = "waited for" if waits else f"while {during} products run" if during else "with no product meanwhile"
        among = f" among {devices}" if devices else ""
        said.append(f"  {count:>3} x {kind}{among} of {size / 1e6:,.2f} MB, {how}")
    return said


def _time(time: dict) -> list[str]:
    if "unknown" in time:
        return [f"time: not predicted, for {time['unknown']}"]
    work = ", ".join(f"{name} {ms:.1f}" for name, ms in time["work_ms"].items())
    exposed, hidden = time["exposed_ms"], time["hidden_ms"]
    said = [
        f"time, predicted: {time['step_ms']:.1f} ms a step ({time['least_ms']:.1f} if all exchanges were hidden, "
        f"{time['most_ms']:.1f} if none)",
        f"  work, ms: {work}",
        f"  between devices, ms: {exposed:.2f} exposed, {hidden:.2f} hidden",
        f"  {time['tokens_per_s']:,.0f} tokens/s"
        + (f", {time['mfu']:.0%} of the datasheets' peak" if time["mfu"] else ""),
        f"  {time['minutes']:.1f} minutes for {time['tokens'] / 1e9:.3g}B tokens, validation not counted",
    ]
    if time["published_step_ms"]:
        said.append(f"  the published run on 8 H100: {time['published_step_ms']:.1f} ms a step")
    return [*said, f"  rates: {time['rates']}", f"  links: {time['links']}; stated speeds, so the least time"]


def _gib(size: int) -> str:
    if size < 2**20:
        return f"{size / 2**10:.1f} KiB"
    return f"{size / 2**20:.1f} MiB" if size < GIB else f"{size / GIB:.2f} GiB"
