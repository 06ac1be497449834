"""What may follow the instances: false ones dropped, merged ones split."""
