"""Slides to patches and targets."""


rule facts:
    input:
        sources=slide_sources,
    output:
        record("facts"),
    log:
        log_of("facts"),
    benchmark:
        benchmark_of("facts")
    conda:
        ENV
    resources:
        mem_mb=memory_of("facts"),
        runtime=minutes_of("facts"),
    params:
        spec=spec_of("facts"),
    script:
        "../scripts/facts.py"


rule tissue:
    input:
        facts=record("facts"),
    output:
        record("tissue"),
    log:
        log_of("tissue"),
    benchmark:
        benchmark_of("tissue")
    conda:
        ENV
    resources:
        mem_mb=memory_of("tissue"),
        runtime=minutes_of("tissue"),
    params:
        spec=spec_of("tissue"),
    script:
        "../scripts/tissue.py"


rule patches:
    input:
        facts=record("facts"),
        tissue=record("tissue"),
    output:
        record("patches", "{grid}"),
    log:
        log_of("patches", "{grid}"),
    benchmark:
        benchmark_of("patches", "{grid}")
    conda:
        ENV
    resources:
        mem_mb=memory_of("patches", "grid"),
        runtime=minutes_of("patches", "grid"),
    params:
        spec=spec_of("patches", "grid"),
    script:
        "../scripts/patches.py"


rule targets:
    input:
        facts=record("facts"),
        patches=record("patches", "{grid}"),
    output:
        record("targets", "{grid}"),
    log:
        log_of("targets", "{grid}"),
    benchmark:
        benchmark_of("targets", "{grid}")
    conda:
        ENV
    resources:
        mem_mb=memory_of("targets", "grid"),
        runtime=minutes_of("targets", "grid"),
    params:
        spec=spec_of("targets", "grid"),
    script:
        "../scripts/targets.py"


rule cell_targets:
    input:
        facts=record("facts"),
        patches=record("patches", "{grid}"),
        sources=cell_files,
    output:
        record("cell_targets", "{grid}"),
    log:
        log_of("cell_targets", "{grid}"),
    benchmark:
        benchmark_of("cell_targets", "{grid}")
    conda:
        ENV
    resources:
        mem_mb=memory_of("cell_targets", "grid"),
        runtime=minutes_of("cell_targets", "grid"),
    params:
        spec=spec_of("cell_targets", "grid"),
    script:
        "../scripts/cell_targets.py"
