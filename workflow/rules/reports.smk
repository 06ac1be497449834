"""Tables and the page."""


rule reports:
    input:
        PLAN.all_records(),
    output:
        [str(STUDY.paths.reports() / f"{name}.parquet") for name in TABLES],
    params:
        spec=spec_of("reports"),
    log:
        log_of("reports", unit="tables"),
    conda:
        ENV
    script:
        "../scripts/reports.py"


rule report_html:
    input:
        tables=rules.reports.output,
    output:
        report(
            str(STUDY.paths.reports() / "report.html"),
            caption="../report/page.rst",
            category="Study",
        ),
    params:
        spec=spec_of("report_html"),
    log:
        log_of("report_html", unit="page"),
    conda:
        ENV
    script:
        "../scripts/report_html.py"
