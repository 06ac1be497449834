"""Decoders on stored embeddings."""


rule train:
    input:
        split=split_record,
        patches=all_patches,
        targets=all_targets,
        embeddings=all_embeddings,
    output:
        record("train", "{experiment}", unit="{fold}"),
    log:
        log_of("train", "{experiment}", unit="{fold}"),
    benchmark:
        benchmark_of("train", "{experiment}", unit="{fold}")
    conda:
        ENV
    params:
        spec=spec_of("train", "experiment", "fold"),
    script:
        "../scripts/train.py"
