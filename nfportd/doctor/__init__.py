"""What makes a port not work: facts gathered, judged, told; `nfportd.doctor.examination.examine` gives all as JSON."""
