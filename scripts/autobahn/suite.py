#!/usr/bin/env python3
"""Plans a run of the Autobahn testsuite, and judges its reports. Called by autobahn.sh.

    suite.py plan  DIR URL SHARD_COUNT PATTERN...   writes DIR/spec-N.json with disjoint case lists
    suite.py judge DIR PATTERN...                   merges DIR/shard-N into DIR/report, compares, exits 0 or 1

expected.txt beside this file names every case there is, with the only outcome accepted for it. wstest itself
exits 0 whatever happens, also when no server answers, so nothing here believes an exit status.
"""
import collections, fnmatch, json, pathlib, shutil, sys

HERE = pathlib.Path(__file__).resolve().parent
AGENT = "resound"


def by_number(case):
    return [int(part) for part in case.split(".")]


def expected(patterns):
    """{case: (behavior, behavior of the close)} of every case that a pattern names, in order."""
    table = {}
    for line in (HERE / "expected.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            case, behavior, close = line.split()
            table[case] = (behavior, close)
    for pattern in patterns:
        if not fnmatch.filter(table, pattern):
            sys.exit(f"error: no Autobahn case matches '{pattern}'; examples: '1.*' '6.4.*' 7.1.6")
    chosen = (case for case in table if any(fnmatch.fnmatchcase(case, p) for p in patterns))
    return {case: table[case] for case in sorted(chosen, key=by_number)}


def plan(out, url, shards, patterns):
    cases = list(expected(patterns))
    shards = min(int(shards), len(cases))
    for shard in range(shards):
        spec = {
            "outdir": str(out / f"shard-{shard}"),
            "servers": [{"agent": AGENT, "url": url}],
            "cases": cases[shard::shards],
            "exclude-cases": [],
            "exclude-agent-cases": {},
        }
        (out / f"spec-{shard}.json").write_text(json.dumps(spec))
    print(f"{len(cases)} cases in {shards} parallel runs")


def merge(out):
    """One report of all shards, with the suite's own index page; returns {case: result}."""
    report = out / "report"
    report.mkdir()
    results = {}
    for shard in sorted(out.glob("shard-*")):
        for path in shard.iterdir():
            if not path.name.startswith("index."):
                shutil.copy(path, report / path.name)
        for path in shard.glob("*_case_*.json"):
            result = json.loads(path.read_text())
            results[result["id"]] = result
    if results:
        sys.path.insert(0, str(HERE))
        import wstest3

        wstest3.install()
        from autobahntestsuite import fuzzing, caseset, case

        factory = fuzzing.FuzzingFactory(str(report))
        factory.CaseSet = caseset.CaseSet(
            case.CaseSetname, case.CaseBasename, case.Cases, case.CaseCategories, case.CaseSubCategories
        )
        for result in results.values():
            factory.logCase(result)
        factory.createMasterReportHTML(str(report))
        factory.createMasterReportJSON(str(report))
    return results


def table(results):
    columns = ["OK", "INFORMATIONAL", "NON-STRICT", "FAILED", "UNIMPLEMENTED"]
    rows = collections.defaultdict(collections.Counter)
    for case, result in results.items():
        # A close that went wrong fails the case, whatever its messages did.
        behavior, close = result["behavior"], result["behaviorClose"]
        bad_close = behavior == "OK" and close != "OK"
        kind = behavior if behavior in columns and not bad_close else "FAILED"
        for row in (int(case.split(".")[0]), "all"):
            rows[row][kind] += 1
    print(f"{'section':>8}{'cases':>7}" + "".join(f"{column:>15}" for column in columns))
    for row in sorted((r for r in rows if r != "all")) + ["all"]:
        print(f"{row:>8}{sum(rows[row].values()):>7}" + "".join(f"{rows[row][column]:>15}" for column in columns))
    return rows["all"]


def judge(out, patterns):
    want, results = expected(patterns), merge(out)
    differences = []
    for case in sorted(want.keys() | results.keys(), key=by_number):
        if case not in results:
            differences.append(f"{case}: did not run")
            continue
        result = results[case]
        got = (result["behavior"], result["behaviorClose"])
        if case not in want:
            differences.append(f"{case}: was not asked for")
        elif got != want[case]:
            differences.append(
                f"{case}: {'/'.join(got)}, expected {'/'.join(want[case])}; close code {result['remoteCloseCode']}; "
                f"{result.get('result') or 'no reason given'} "
                f"({AGENT}_case_{case.replace('.', '_')}.html)"
            )
    counts = table(results)
    print("\n".join(differences) or "every outcome is the expected one")
    print(f"report: {out / 'report' / 'index.html'}")
    counted = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items(), key=lambda kv: -kv[1]))
    print(f"{len(results)} of {len(want)} cases: {counted or 'none ran'}; {len(differences)} unexpected")
    sys.exit(1 if differences else 0)


def main():
    command, out, rest = sys.argv[1], pathlib.Path(sys.argv[2]).resolve(), sys.argv[3:]
    if command == "plan":
        plan(out, rest[0], rest[1], rest[2:])
    elif command == "judge":
        judge(out, rest)
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main()
