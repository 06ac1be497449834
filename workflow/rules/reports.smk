"""Tables, the page, and the figures that Snakemake's own report carries."""


rule reports:
    input:
        PLAN.all_records(),
    output:
        [str(STUDY.paths.reports() / f"{name}.parquet") for name in TABLES],
    log:
        log_of("reports", unit="tables"),
    conda:
        ENV
    resources:
        mem_mb=memory_of("reports"),
        runtime=minutes_of("reports"),
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
    resources:
        mem_mb=memory_of("report_html"),
        runtime=minutes_of("report_html"),
    params:
        spec=spec_of("report_html"),
    script:
        "../scripts/report_html.py"


rule report_figures:
    input:
        tables=rules.reports.output,
    output:
        [
            report(
                str(STUDY.paths.reports() / "figures" / f"{name}.svg"),
                caption=f"../report/{figure.caption}",
                category=figure.category,
                labels={"figure": figure.title},
            )
            for name, figure in FIGURES.items()
        ],
    log:
        log_of("report_figures", unit="figures"),
    conda:
        ENV
    resources:
        mem_mb=memory_of("report_figures"),
        runtime=minutes_of("report_figures"),
    params:
        spec=spec_of("report_figures"),
    script:
        "../scripts/report_figures.py"
