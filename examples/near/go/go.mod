module larder/examples/near

go 1.18
