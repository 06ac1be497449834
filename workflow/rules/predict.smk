"""Tiles to slide maps, maps to nuclei, nuclei to figures and files for other programs."""

PREDICTED_FROM = dict(
    split=split_record,
    model=record("train", "{experiment}", unit="{fold}"),
    facts=record("facts"),
    patches=experiment_patches_job,
    embeddings=embeddings_job,
    statistics=statistics_record,
    weights=weight_files,
)


rule bands:
    input:
        **PREDICTED_FROM,
    output:
        record("bands", "{experiment}", "{fold}", "{band}"),
    log:
        log_of("bands", "{experiment}", "{fold}", "{band}"),
    benchmark:
        benchmark_of("bands", "{experiment}", "{fold}", "{band}")
    conda:
        ENV
    resources:
        mem_mb=memory_of("bands", "experiment", "fold", "band"),
        runtime=minutes_of("bands", "experiment", "fold", "band"),
    params:
        spec=spec_of("bands", "experiment", "fold", "band"),
    script:
        "../scripts/bands.py"


rule maps:
    input:
        **PREDICTED_FROM,
        bands=bands_job,
    output:
        record("maps", "{experiment}", "{fold}"),
    log:
        log_of("maps", "{experiment}", "{fold}"),
    benchmark:
        benchmark_of("maps", "{experiment}", "{fold}")
    conda:
        ENV
    resources:
        mem_mb=memory_of("maps", "experiment", "fold"),
        runtime=minutes_of("maps", "experiment", "fold"),
    params:
        spec=spec_of("maps", "experiment", "fold"),
    script:
        "../scripts/maps.py"


rule verifier:
    input:
        split=split_record,
        facts=judged_jobs("facts"),
        maps=judged_jobs("maps"),
    output:
        record("verifier", "{experiment}", unit="{fold}"),
    log:
        log_of("verifier", "{experiment}", unit="{fold}"),
    benchmark:
        benchmark_of("verifier", "{experiment}", unit="{fold}")
    wildcard_constraints:
        experiment=one_of(VERIFIED),
    conda:
        ENV
    resources:
        mem_mb=memory_of("verifier", "experiment", "fold"),
        runtime=minutes_of("verifier", "experiment", "fold"),
    params:
        spec=spec_of("verifier", "experiment", "fold"),
    script:
        "../scripts/verifier.py"


rule instances:
    input:
        facts=record("facts"),
        patches=patches_job,
        maps=record("maps", "{experiment}", "{fold}"),
        verifier=verifier_record,
    output:
        record("instances", "{experiment}", "{fold}"),
    log:
        log_of("instances", "{experiment}", "{fold}"),
    benchmark:
        benchmark_of("instances", "{experiment}", "{fold}")
    wildcard_constraints:
        experiment=one_of(PREDICTED),
    conda:
        ENV
    resources:
        mem_mb=memory_of("instances", "experiment", "fold"),
        runtime=minutes_of("instances", "experiment", "fold"),
    params:
        spec=spec_of("instances", "experiment", "fold"),
    script:
        "../scripts/instances.py"


rule imported:
    input:
        split=split_record,
        facts=record("facts"),
        patches=patches_job,
        files=external_files,
    output:
        record("instances", "{experiment}", "{fold}"),
    log:
        log_of("instances", "{experiment}", "{fold}"),
    benchmark:
        benchmark_of("instances", "{experiment}", "{fold}")
    wildcard_constraints:
        experiment=one_of(EXTERNAL),
    conda:
        ENV
    resources:
        mem_mb=memory_of("imported", "experiment", "fold"),
        runtime=minutes_of("imported", "experiment", "fold"),
    params:
        spec=spec_of("imported", "experiment", "fold"),
    script:
        "../scripts/imported.py"


rule biology:
    input:
        facts=record("facts"),
        tissue=record("tissue"),
        maps=maps_job,
        instances=record("instances", "{experiment}", "{fold}"),
    output:
        record("biology", "{experiment}", "{fold}"),
    log:
        log_of("biology", "{experiment}", "{fold}"),
    benchmark:
        benchmark_of("biology", "{experiment}", "{fold}")
    conda:
        ENV
    resources:
        mem_mb=memory_of("biology", "experiment", "fold"),
        runtime=minutes_of("biology", "experiment", "fold"),
    params:
        spec=spec_of("biology", "experiment", "fold"),
    script:
        "../scripts/biology.py"


rule exports:
    input:
        facts=record("facts"),
        instances=record("instances", "{experiment}", "{fold}"),
    output:
        record("exports", "{experiment}", "{fold}"),
    log:
        log_of("exports", "{experiment}", "{fold}"),
    benchmark:
        benchmark_of("exports", "{experiment}", "{fold}")
    conda:
        ENV
    resources:
        mem_mb=memory_of("exports", "experiment", "fold"),
        runtime=minutes_of("exports", "experiment", "fold"),
    params:
        spec=spec_of("exports", "experiment", "fold"),
    script:
        "../scripts/exports.py"


rule metrics:
    input:
        split=split_record,
        facts=record("facts"),
        targets=targets_job,
        maps=maps_job,
        instances=record("instances", "{experiment}", "{fold}"),
    output:
        record("metrics", "{experiment}", "{fold}"),
    log:
        log_of("metrics", "{experiment}", "{fold}"),
    benchmark:
        benchmark_of("metrics", "{experiment}", "{fold}")
    conda:
        ENV
    resources:
        mem_mb=memory_of("metrics", "experiment", "fold"),
        runtime=minutes_of("metrics", "experiment", "fold"),
    params:
        spec=spec_of("metrics", "experiment", "fold"),
    script:
        "../scripts/metrics.py"
