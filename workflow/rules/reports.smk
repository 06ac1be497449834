"""Tables and the page."""


rule reports:
    input:
        PLAN.all_records(),
    output:
        [str(STUDY.paths.reports() / f"{name}.parquet") for name in TABLES],
    log:
        log_of("reports", unit="tables"),
    conda:
        ENV
    params:
        spec=spec_of("reports"),
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
    log:
        log_of("report_html", unit="page"),
    conda:
        ENV
    params:
        spec=spec_of("report_html"),
    script:
        "../scripts/report_html.py"
