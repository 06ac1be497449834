"""Splits, channel statistics, embeddings."""


rule splits:
    output:
        record("splits", unit="{split}"),
    log:
        log_of("splits", unit="{split}"),
    benchmark:
        benchmark_of("splits", unit="{split}")
    conda:
        ENV
    resources:
        mem_mb=memory_of("splits", "split"),
        runtime=minutes_of("splits", "split"),
    params:
        spec=spec_of("splits", "split"),
    script:
        "../scripts/splits.py"


rule statistics:
    input:
        split=statistics_split,
        patches=all_patches,
    output:
        record("statistics", unit="{encoder}"),
    log:
        log_of("statistics", unit="{encoder}"),
    benchmark:
        benchmark_of("statistics", unit="{encoder}")
    conda:
        ENV
    resources:
        mem_mb=memory_of("statistics", "encoder"),
        runtime=minutes_of("statistics", "encoder"),
    params:
        spec=spec_of("statistics", "encoder"),
    script:
        "../scripts/statistics.py"


rule embeddings:
    input:
        patches=patches_job,
        statistics=statistics_record,
        weights=weight_files,
    output:
        record("embeddings", "{encoder}"),
    log:
        log_of("embeddings", "{encoder}"),
    benchmark:
        benchmark_of("embeddings", "{encoder}")
    conda:
        ENV
    resources:
        mem_mb=memory_of("embeddings", "encoder"),
        runtime=minutes_of("embeddings", "encoder"),
    params:
        spec=spec_of("embeddings", "encoder"),
    script:
        "../scripts/embeddings.py"
